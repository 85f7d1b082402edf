//! The end of the daemon: what nobody uses goes down, and the rest is left to the next one. A restart, for a new
//! version say, takes nothing from anybody.

use super::api::{Failure, FailureKind};
use super::entry::{Doing, Entry, Phase};
use super::lifecycle::{Ending, PATIENCE};
use super::{Controller, Note};
use crate::frontend::openers;
use tokio::sync::mpsc;
use tokio::task::spawn_blocking;
use tokio::time::timeout;

impl Controller {
    /// The daemon ends: takes down what is not in use, then leaves the rest to the next one, as late as can be: their
    /// users wait from then on. What has come up meanwhile is left as well, for it may have been waited for.
    pub(super) async fn end(mut self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Result<(), Failure> {
        self.ending = true;
        tracing::info!("ending: taking {} volumes down", self.volumes.len());
        // One that is coming up is then used or not like any other; one that hangs keeps nobody.
        let all: Vec<_> = self.volumes.keys().cloned().collect();
        let _ = timeout(PATIENCE, self.settle(&all, notes)).await;
        let mut unused = self.up_now(notes);
        let used = self.used().await;
        unused.retain(|name| !used.contains(name));
        self.end_these(&unused, Ending::Force, notes).await;
        // Those that somebody takes down have their time.
        let is_ending = |entry: &Entry| matches!(entry.phase, Phase::Busy(Doing::GoingDown));
        let ending = self.volumes.iter().filter(|(_, entry)| is_ending(entry)).map(|(name, _)| name.clone());
        let ending: Vec<_> = ending.collect();
        self.settle(&ending, notes).await;
        loop {
            let rest = self.up_now(notes);
            if rest.is_empty() {
                break;
            }
            self.end_these(&rest, Ending::KeepDevice, notes).await;
        }
        let has_failed = |entry: &Entry| matches!(entry.phase, Phase::Failed(_) | Phase::Busy(_));
        let failed: Vec<_> = self.volumes.iter().filter(|(_, entry)| has_failed(entry)).collect();
        if failed.is_empty() {
            return Ok(());
        }
        let names = failed.iter().map(|(name, _)| name.as_str()).collect::<Vec<_>>().join(" ");
        Err(Failure::new(
            FailureKind::Failed,
            format!("not taken down cleanly: {names}; their next start copies all tracks of hot regions"),
        ))
    }

    /// Of what is known by now.
    fn up_now(&mut self, notes: &mut mpsc::UnboundedReceiver<Note>) -> Vec<String> {
        while let Ok(note) = notes.try_recv() {
            self.note(note);
        }
        let up = self.volumes.iter().filter(|(_, entry)| matches!(entry.phase, Phase::Up(_)));
        up.map(|(name, _)| name.clone()).collect()
    }

    async fn end_these(&mut self, names: &[String], ending: Ending, notes: &mut mpsc::UnboundedReceiver<Note>) {
        for name in names {
            self.take_down(name, ending, None);
        }
        self.settle(names, notes).await;
    }

    /// Waits for what is under way with these volumes.
    async fn settle(&mut self, names: &[String], notes: &mut mpsc::UnboundedReceiver<Note>) {
        let is_busy = |entry: &Entry| matches!(entry.phase, Phase::Busy(_));
        while names.iter().any(|name| self.volumes.get(name).is_some_and(is_busy)) {
            let Some(note) = notes.recv().await else { return };
            self.note(note);
        }
    }

    /// The volumes whose users keep their device.
    async fn used(&self) -> Vec<String> {
        let up = |(name, entry): (&String, &Entry)| match &entry.phase {
            Phase::Up(volume) if volume.broken().is_none() => Some((name.clone(), volume.device_path())),
            _ => None,
        };
        // All at once: each look may take its whole time.
        let look = |(name, device): (String, String)| {
            let path = device.clone();
            (name, device, spawn_blocking(move || openers::of(&path)))
        };
        let looks: Vec<_> = self.volumes.iter().filter_map(up).map(look).collect();
        let mut used = Vec::new();
        for (name, device, users) in looks {
            let users = users.await.unwrap_or_else(|error| vec![error.to_string()]);
            if !users.is_empty() {
                let users = users.join(", ");
                tracing::warn!("{name}: {device} is in use: {users}; its I/O waits until a daemon runs again");
                used.push(name);
            }
        }
        used
    }
}
