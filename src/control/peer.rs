//! Who is at the other end of a connection, and what he may do. The kernel's word (`SO_PEERCRED`) is all that counts;
//! the user database is asked off the control thread and for a bounded time, and silence means no.

use std::ffi::CString;
use std::io;
use std::time::Duration;

use nix::unistd::{Gid, Group, Uid, User, geteuid, getgrouplist};
use tokio::net::UnixStream;

use crate::controller::api::{Failure, FailureKind, Request};
use crate::controller::call::Peer;
use crate::controller::config::DaemonConfig;

/// How long the user database, which may be a server far away, may take.
const LOOKUP_TIME_MAX: Duration = Duration::from_secs(5);

/// What a peer may do.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord)]
pub enum Right {
    Nothing,
    /// Ask: the verbs that change nothing.
    Ask,
    Command,
}

/// Who may do what, fixed when the daemon starts.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Access {
    pub group: Option<Gid>,
    pub status_for_everyone: bool,
}

impl Access {
    /// Looks the configured group up, which must exist.
    pub fn new(config: &DaemonConfig) -> Result<Self, Failure> {
        let group = config.group.as_deref().map(group_id).transpose()?;
        Ok(Self { group, status_for_everyone: config.status_for_everyone })
    }

    /// Root, the daemon's own user, and members of the group may command.
    pub async fn right_of(self, peer: &Peer) -> Right {
        if Uid::from_raw(peer.uid).is_root() || peer.uid == geteuid().as_raw() || self.has_member(peer).await {
            Right::Command
        } else if self.status_for_everyone {
            Right::Ask
        } else {
            Right::Nothing
        }
    }

    async fn has_member(self, peer: &Peer) -> bool {
        let Some(group) = self.group else { return false };
        if peer.gid == group.as_raw() {
            return true;
        }
        let Peer { uid, gid, .. } = *peer;
        let lookup = tokio::task::spawn_blocking(move || is_member(Uid::from_raw(uid), Gid::from_raw(gid), group));
        if let Ok(Ok(is_member)) = tokio::time::timeout(LOOKUP_TIME_MAX, lookup).await {
            return is_member;
        }
        tracing::warn!("{peer}: the groups of a client could not be looked up in time; it may not command");
        false
    }
}

impl Right {
    pub fn covers(self, request: &Request) -> bool {
        self >= if request.is_read_only() { Self::Ask } else { Self::Command }
    }
}

/// The credentials of the process that connected, as they were then.
pub fn peer_of(stream: &UnixStream) -> io::Result<Peer> {
    let credentials = stream.peer_cred()?;
    // The kernel says 0 for a process it cannot name here.
    Ok(Peer { uid: credentials.uid(), gid: credentials.gid(), pid: credentials.pid().filter(|pid| *pid != 0) })
}

fn group_id(name: &str) -> Result<Gid, Failure> {
    let wrong = |why: &str| {
        Failure::new(FailureKind::Failed, format!("the configured group \"{name}\" {why}; create it or name another"))
    };
    match Group::from_name(name) {
        Ok(Some(group)) => Ok(group.gid),
        Ok(None) => Err(wrong("does not exist")),
        Err(error) => Err(wrong(&format!("could not be looked up ({error})"))),
    }
}

/// Whether the user database puts `uid` into `group`, as a supplementary group or as the primary one.
fn is_member(uid: Uid, gid: Gid, group: Gid) -> bool {
    let Ok(Some(user)) = User::from_uid(uid) else { return false };
    let Ok(name) = CString::new(user.name) else { return false };
    user.gid == group || getgrouplist(&name, gid).is_ok_and(|groups| groups.contains(&group))
}
