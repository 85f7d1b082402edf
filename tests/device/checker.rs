//! The independent oracle: are these images of all volumes one consistent cut? It knows the log of the writes and the
//! bytes of the images, and nothing of farpoint.
//!
//! Writes in flight never overlap, so the writes of a sector have an order, that of their issue.
//! * Every sector holds a whole write that was meant for it, or was never written.
//! * P2: if the images hold a write, they hold every write acknowledged before that one was issued, or a later one.
//! * P3: they hold every write acknowledged before `start` was sent.
//! * H12: they hold no write issued after `start` was answered, and no half of a write that fits one request.

use std::collections::BTreeSet;
use std::fmt;

use crate::history::{UNACKNOWLEDGED, Write};
use crate::sector::{self, Content, SECTOR, Stamp, WriteId};

/// Most violations that are reported one by one.
const REPORTED_MAX: usize = 20;
/// Writes up to this are never split on their way: 128 KiB.
const WHOLE_SECTORS_MAX: u64 = 256;

/// When the cut was made, by the clock of the log.
#[derive(Debug, Clone, Copy)]
pub struct Cut {
    pub start_sent: u64,
    pub start_answered: u64,
}

/// One thing wrong with the images.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Violation {
    Broken {
        volume: u32,
        lba: u64,
    },
    Misplaced {
        volume: u32,
        lba: u64,
        found: Stamp,
    },
    Unknown {
        volume: u32,
        lba: u64,
        write: WriteId,
    },
    /// P2: a write is missing that the newest write in the images depends on.
    Inconsistent {
        volume: u32,
        lba: u64,
        missing: WriteId,
    },
    /// P3: a write is missing that was acknowledged before `start`.
    Old {
        volume: u32,
        lba: u64,
        missing: WriteId,
    },
    /// H12: a write that came after the cut.
    TooNew {
        volume: u32,
        lba: u64,
        write: WriteId,
    },
    /// H12: a part of the write is there and a part is not.
    Half {
        volume: u32,
        lba: u64,
        write: WriteId,
    },
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |write: &WriteId| format!("write {}.{}", write.writer, write.sequence);
        match self {
            Self::Broken { volume, lba } => write!(f, "volume {volume} sector {lba}: torn or foreign content"),
            Self::Misplaced { volume, lba, found } => {
                write!(f, "volume {volume} sector {lba}: holds volume {} sector {}", found.volume, found.lba)
            }
            Self::Unknown { volume, lba, write } => {
                write!(f, "volume {volume} sector {lba}: holds {}, which was never made there", name(write))
            }
            Self::Inconsistent { volume, lba, missing } => write!(
                f,
                "P2: volume {volume} sector {lba}: lacks {}, which a write that is there depends on",
                name(missing)
            ),
            Self::Old { volume, lba, missing } => {
                write!(f, "P3: volume {volume} sector {lba}: lacks {}, acknowledged before start", name(missing))
            }
            Self::TooNew { volume, lba, write } => {
                write!(f, "H12: volume {volume} sector {lba}: holds {}, issued after the cut", name(write))
            }
            Self::Half { volume, lba, write } => {
                write!(f, "H12: volume {volume} sector {lba}: lacks its part of {}, which is there", name(write))
            }
        }
    }
}

/// What one check came to.
#[derive(Debug, Default)]
pub struct Verdict {
    /// The first of them.
    pub violations: Vec<Violation>,
    pub violation_count: usize,
    /// Sectors that hold a write.
    pub written_sectors: u64,
    /// Sectors that hold a write which was not acknowledged when `start` was sent.
    pub in_flight_sectors: u64,
}

impl Verdict {
    fn add(&mut self, violation: Violation) {
        self.violation_count += 1;
        if self.violations.len() < REPORTED_MAX {
            self.violations.push(violation);
        }
    }

    /// An error that lists what is wrong.
    pub fn into_result(self) -> Result<Self, String> {
        if self.violation_count == 0 {
            return Ok(self);
        }
        let lines: Vec<_> = self.violations.iter().map(|violation| format!("  {violation}")).collect();
        Err(format!("{} violations, the first:\n{}", self.violation_count, lines.join("\n")))
    }
}

/// The newest write known to have been acknowledged for a sector.
type Newest = Option<(u64, WriteId)>;

/// Checks one set of images after the other, in the order of their cuts.
#[derive(Debug, Clone)]
pub struct Checker {
    newest: Vec<Vec<Newest>>,
    /// How many writes of each writer were looked at, and those of them that were not acknowledged in time.
    looked_at: Vec<usize>,
    open: Vec<WriteId>,
}

fn find(log: &[Vec<Write>], id: WriteId) -> Option<&Write> {
    log.get(id.writer as usize)?.get(usize::try_from(id.sequence).ok()?)
}

impl Checker {
    /// For volumes of so many sectors, never written.
    pub fn new(volume_sectors: &[usize], writers: usize) -> Self {
        let newest = volume_sectors.iter().map(|sectors| vec![None; *sectors]).collect();
        Self { newest, looked_at: vec![0; writers], open: Vec::new() }
    }

    /// Checks the images, one for each volume.
    pub fn check(&mut self, log: &[Vec<Write>], cut: Cut, images: &[Vec<u8>]) -> Verdict {
        let mut verdict = Verdict::default();
        let shown = read(log, images, cut, &mut verdict);
        let newest_shown = shown.iter().flatten().flatten().map(|(issue, _)| *issue).max().unwrap_or(0);
        self.take_acknowledged(log, newest_shown.max(cut.start_sent));
        for (volume, (shown, newest)) in (0..).zip(shown.iter().zip(&self.newest)) {
            for (lba, (shown, newest)) in (0..).zip(shown.iter().zip(newest)) {
                let Some((issue, missing)) = *newest else { continue };
                if shown.is_some_and(|(shown, _)| shown >= issue) {
                    continue;
                }
                let old = find(log, missing).is_some_and(|write| write.ack < cut.start_sent);
                verdict.add(match old {
                    true => Violation::Old { volume, lba, missing },
                    false => Violation::Inconsistent { volume, lba, missing },
                });
            }
        }
        whole_writes(log, &shown, cut, &mut verdict);
        verdict
    }

    /// Follows the log: what was acknowledged before `time` must be in the images.
    fn take_acknowledged(&mut self, log: &[Vec<Write>], time: u64) {
        for (writer, (looked_at, writes)) in (0..).zip(self.looked_at.iter_mut().zip(log)) {
            self.open.extend((*looked_at..writes.len()).map(|at| WriteId { writer, sequence: at as u64 }));
            *looked_at = writes.len();
        }
        let newest = &mut self.newest;
        self.open.retain(|id| {
            let Some(write) = find(log, *id) else { return false };
            if write.ack >= time {
                return !write.failed;
            }
            for (volume, lba) in sectors_of(write) {
                let Some(place) = newest.get_mut(volume).and_then(|sectors| sectors.get_mut(lba)) else { continue };
                if place.is_none_or(|(issue, _)| issue < write.issue) {
                    *place = Some((write.issue, *id));
                }
            }
            false
        });
    }
}

fn sectors_of(write: &Write) -> impl Iterator<Item = (usize, usize)> {
    let (volume, lba) = (write.volume as usize, usize::try_from(write.lba).unwrap_or(usize::MAX));
    (lba..lba + usize::try_from(write.sectors).unwrap_or(0)).map(move |lba| (volume, lba))
}

/// What every sector of the images shows: the write's issue and id.
fn read(log: &[Vec<Write>], images: &[Vec<u8>], cut: Cut, verdict: &mut Verdict) -> Vec<Vec<Newest>> {
    let mut read_one = |volume: u32, lba: u64, bytes: &[u8]| -> Newest {
        let stamp = match sector::parse(bytes) {
            Content::Empty => return None,
            Content::Broken => {
                verdict.add(Violation::Broken { volume, lba });
                return None;
            }
            Content::Whole(stamp) => stamp,
        };
        if (stamp.volume, stamp.lba) != (volume, lba) {
            verdict.add(Violation::Misplaced { volume, lba, found: stamp });
            return None;
        }
        let Some(write) = find(log, stamp.write).filter(|write| write.covers(volume, lba)) else {
            verdict.add(Violation::Unknown { volume, lba, write: stamp.write });
            return None;
        };
        if write.issue > cut.start_answered {
            verdict.add(Violation::TooNew { volume, lba, write: stamp.write });
        }
        verdict.written_sectors += 1;
        verdict.in_flight_sectors += u64::from(write.ack > cut.start_sent);
        Some((write.issue, stamp.write))
    };
    let volumes = (0..).zip(images);
    let sectors = |(volume, image): (u32, &Vec<u8>)| {
        (0..).zip(image.chunks_exact(SECTOR)).map(|(lba, bytes)| read_one(volume, lba, bytes)).collect()
    };
    volumes.map(sectors).collect()
}

/// A write that was under way at the cut is in it or is not; those acknowledged before are checked already.
fn whole_writes(log: &[Vec<Write>], shown: &[Vec<Newest>], cut: Cut, verdict: &mut Verdict) {
    let all = shown.iter().flatten().flatten().map(|(_, id)| *id);
    let under_way: BTreeSet<WriteId> =
        all.filter(|id| find(log, *id).is_some_and(|write| write.ack > cut.start_sent && !write.failed)).collect();
    for id in under_way {
        let Some(write) = find(log, id).filter(|write| write.sectors <= WHOLE_SECTORS_MAX) else { continue };
        // Answered or not, nothing but the cut came between; a host that was cut off may have left a part.
        if write.ack == UNACKNOWLEDGED && cut.start_answered == UNACKNOWLEDGED {
            continue;
        }
        let lacks = |(volume, lba): &(usize, usize)| {
            let shown = shown.get(*volume).and_then(|sectors| sectors.get(*lba)).copied().flatten();
            shown.is_none_or(|(issue, _)| issue < write.issue)
        };
        if let Some((_, lba)) = sectors_of(write).find(lacks) {
            verdict.add(Violation::Half { volume: write.volume, lba: lba as u64, write: id });
        }
    }
}
