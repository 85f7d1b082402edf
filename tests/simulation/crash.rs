//! The machine stops, cleanly or at any instant, and starts again from what media holds. Judged by that alone: whatever
//! differs between the two sides is out of sync afterwards (P1), after a clean stop nothing else is (P7), and no number
//! of an increment comes twice.
//!
//! A power cut leaves of every sector in a volatile cache the old or the new content; a killed daemon leaves caches
//! whole, and its requests under way land or do not.

use crate::checker::{Stamp, Violation};
use crate::devices::{Io, IoKind};
use crate::disk::Disk;
use crate::options::TRACK_SECTORS;
use crate::rng::Rng;
use crate::trace::Note;
use crate::world::{Event, World};
use farpoint::geometry::TrackNo;
use farpoint::intent::{Message, PageNo};
use farpoint::metadata::layout::PAGE_BYTES;
use farpoint::metadata::media::{Media, Recovery, Way};
use farpoint::metadata::medium::Page;
use farpoint::metadata::{Tracks, superblock::Superblock};
use std::path::Path;
use std::sync::Arc;

/// How it stops.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Stop {
    PowerCut,
    Killed,
    /// As the last step of a clean stop; the power may go in the middle of it.
    Clean,
}

/// What a volume starts from.
#[derive(Debug)]
pub struct Start {
    pub primary: Vec<Stamp>,
    pub secondary: Vec<Stamp>,
    pub media: Media,
    pub disk: Arc<Disk>,
    pub recovery: Recovery,
}

fn path() -> &'static Path {
    Path::new("simulated")
}

impl Start {
    /// A volume that has never been up, or one that was in sync when it went down.
    pub fn first(primary: Vec<Stamp>, secondary: Vec<Stamp>, superblock: Superblock, cold: bool, rng: Rng) -> Self {
        let bytes = usize::try_from(superblock.layout.bytes()).expect("small");
        let disk = Arc::new(Disk::new(vec![0; bytes], rng));
        let media = Media::format(path(), disk.clone(), superblock).expect("a sound disk");
        if primary == secondary {
            let recovery = media.recovery().expect("a sound disk");
            media.begin(&recovery, true).expect("a sound disk");
            if cold {
                let (area, mut memory) = (media.intent_area(), Page::ZERO);
                for page in 0..area.pages() {
                    let extent = area.page(PageNo(page), &[], &mut memory.0);
                    area.write(extent.offset, &memory.0).expect("a sound disk");
                }
            }
            media.end(&Tracks::default(), false).expect("a sound disk");
        }
        let recovery = media.recovery().expect("a sound disk");
        media.begin(&recovery, true).expect("a sound disk");
        Self { primary, secondary, media, disk, recovery }
    }
}

impl World {
    /// Stops, and starts again.
    pub fn stop_and_start(&mut self, stop: Stop) {
        self.note(Note::Stop(stop));
        self.coverage.crashes += 1;
        let saved = if stop == Stop::Clean { self.end_cleanly() } else { vec![None; self.volumes.len()] };
        self.land_some();
        let numbers = self.controller.numbers_used;
        let mut starts = Vec::new();
        for (index, saved) in saved.into_iter().enumerate() {
            match self.start_again(index, stop != Stop::Killed, saved) {
                Ok(start) => starts.push(start),
                Err(violation) => {
                    self.violation.get_or_insert(violation);
                    return;
                }
            }
        }
        let stored = starts.iter().map(|start| start.media.superblock().last_increment).max().unwrap_or(0);
        if stored < numbers {
            return self.breach("numbers", format!("increment {numbers} was begun and media knows {stored}"));
        }
        self.reborn(starts, stored);
    }

    /// The drains are stopped with what they have in hand, tracks are saved, and the volume is said to be clean. Of
    /// each volume, what was saved, unless the power went meanwhile or metadata had failed.
    fn end_cleanly(&mut self) -> Vec<Option<Tracks>> {
        self.finish_page_writes();
        let mut saved = Vec::new();
        for volume in &mut self.volumes {
            volume.drain.give_up(&volume.tracking);
            let devices = &mut volume.side.devices;
            let mut tracks = Tracks::of(volume.tracking.out_of_sync());
            tracks.add(volume.tracking.change_recording());
            devices.cache.begin_flush(None, &devices.primary);
            devices.cache.end_flush(None, true);
            let failed = volume.regions.has_failed()
                || volume.regions.is_in_doubt()
                || volume.kept.answers.iter().any(|(_, ok)| !ok)
                || volume
                    .side
                    .letters
                    .iter()
                    .chain(&volume.kept.letters)
                    .any(|letter| matches!(letter, Message::Written { ok: false, .. }));
            let (Some(media), false) = (&devices.media, failed) else {
                saved.push(None);
                continue;
            };
            if self.rng.chance(1, 3) {
                devices.disk.as_ref().expect("a disk").cut_after(self.rng.next() % 6);
            }
            saved.push(media.end(&tracks, false).is_ok().then_some(tracks));
        }
        saved
    }

    /// The threads that write metadata have ended.
    fn finish_page_writes(&mut self) {
        let is_page =
            |event: &Event| matches!(event, Event::Io(Io { kind: IoKind::WritePage(_) | IoKind::WriteRecord(_), .. }));
        while let Some(at) = self.ready.iter().position(is_page) {
            let Event::Io(mut io) = self.ready.swap_remove(at) else { return };
            self.volumes[io.volume].side.devices.carry_out(&io, io.goal() - io.done);
            io.done = io.goal();
            self.finish_io(io);
        }
    }

    /// Of the requests under way some land, whole or in part, in any order.
    fn land_some(&mut self) {
        let mut under_way: Vec<Io> =
            self.ready.iter().filter_map(|event| if let Event::Io(io) = event { Some(*io) } else { None }).collect();
        for volume in &self.volumes {
            under_way.extend(&volume.side.devices.secondary.hung);
        }
        while !under_way.is_empty() {
            let io = under_way.swap_remove(self.rng.below(under_way.len()));
            let left = io.goal() - io.done;
            let lands = matches!(
                io.kind,
                IoKind::HostWrite { .. }
                    | IoKind::SendRun(..)
                    | IoKind::SendImage(..)
                    | IoKind::WritePage(_)
                    | IoKind::WriteRecord(_)
            );
            if lands && left > 0 && self.rng.chance(2, 3) {
                let sectors = if self.rng.chance(1, 2) { left } else { self.rng.below(left + 1) };
                self.volumes[io.volume].side.devices.carry_out(&io, sectors);
            }
        }
    }

    fn start_again(&mut self, index: usize, power_cut: bool, mut saved: Option<Tracks>) -> Result<Start, Violation> {
        let rng = &mut self.rng;
        let devices = &self.volumes[index].side.devices;
        let primary = if power_cut { devices.cache.remains(&devices.primary, rng) } else { devices.primary.clone() };
        let (live, durable) = (&devices.secondary.live, &devices.secondary.durable);
        let either = |(new, old): (&Stamp, &Stamp)| if power_cut && rng.chance(1, 2) { *old } else { *new };
        let secondary: Vec<Stamp> = live.iter().zip(durable).map(either).collect();
        let mut disk = devices.disk.as_ref().expect("a disk").remains(power_cut, Rng::new(rng.next()));
        if rng.chance(1, 16) {
            // A page that rots is as good as one that was torn, and of a record there are two.
            let layout = devices.layout.expect("metadata");
            let page = rng.next() % (layout.intent_pages + 2 * u64::from(layout.log_slots));
            let at = layout.intent_offset + page * PAGE_BYTES as u64 + rng.next() % 64;
            disk.rot(at, rng.below(8));
        }
        loop {
            let beneath = Arc::new(disk);
            let failed = |error| Violation::new("P1", format!("volume {index} cannot start: {error}"));
            let media = Media::open(path(), beneath.clone()).map_err(failed)?;
            let recovery = media.recovery().map_err(failed)?;
            check(index, &primary, &secondary, &recovery, saved.take().as_ref())?;
            self.coverage.gaps += recovery.logged.lost;
            // The power may go again before anyone has written.
            if self.rng.chance(1, 4) {
                beneath.cut_after(self.rng.next() % 6);
            }
            if media.begin(&recovery, true).is_ok() {
                beneath.cut_after(u64::MAX);
                return Ok(Start { primary, secondary, media, disk: beneath, recovery });
            }
            disk = beneath.remains(true, Rng::new(self.rng.next()));
        }
    }

    /// Everything new but what media holds. The judge begins anew as well: what the primaries hold now is the
    /// beginning.
    fn reborn(&mut self, starts: Vec<Start>, number: u64) {
        let mut world = Self::with(self.options.clone(), self.rng.next(), self.trace.is_verbose(), starts);
        std::mem::swap(&mut world.trace, &mut self.trace);
        world.coverage = self.coverage;
        world.controller.begin_after(number);
        world.violation = self.violation.take();
        *self = world;
    }
}

/// As a judge sees the two sides: where they differ and what is out of sync.
fn check(
    index: usize,
    primary: &[Stamp],
    secondary: &[Stamp],
    recovery: &Recovery,
    saved: Option<&Tracks>,
) -> Result<(), Violation> {
    for (sector, (a, b)) in primary.iter().zip(secondary).enumerate() {
        let track = (sector / TRACK_SECTORS) as u64;
        if a != b && !recovery.tracks.contains(TrackNo(track)) {
            let text = format!(
                "sector {index}:{sector}: the primary holds {a:?}, the secondary {b:?}, and nobody knows ({:?})",
                recovery.way
            );
            return Err(Violation::new("P1", text));
        }
    }
    if recovery.logged.damaged {
        let text = format!("volume {index}: a record that counts cannot be read: {:?}", recovery.logged);
        return Err(Violation::new("P7", text));
    }
    if let Some(saved) = saved
        && (*saved != recovery.tracks || recovery.way != Way::Exact)
    {
        let text =
            format!("volume {index} was stopped cleanly and starts {:?} with {:?}", recovery.way, recovery.tracks);
        return Err(Violation::new("P7", text));
    }
    Ok(())
}

/// Both sides as the next judge knows them: what a primary holds is the beginning, and a secondary that differs is
/// blank there.
pub fn renamed(volume: usize, primary: &[Stamp], secondary: &[Stamp]) -> (Vec<Stamp>, Vec<Stamp>) {
    let name = |sector| Stamp::new(0, volume, sector, false);
    let same = primary.iter().zip(secondary).enumerate();
    let other = same.map(|(sector, (a, b))| if a == b { name(sector) } else { Stamp::BLANK }).collect();
    ((0..primary.len()).map(name).collect(), other)
}
