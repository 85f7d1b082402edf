//! Tests of the keeper against a model of media: a page or slot of the log holds what the last finished write left, or,
//! while one is under way, that or any mixture of the two.

use super::*;
use crate::geometry::{Geometry, TrackNo, TrackRange};
use crate::memory::Words;
use crate::tracking::{Admission, Bitmap, Epoch, Ticket, Tracking};
use proptest::prelude::*;
use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

mod log;

const TRACK: u64 = 4096;
const REGION: u64 = 2 * TRACK;
const PER_PAGE: u64 = 5;
const LIMITS: Limits = Limits { hot_max: 4, idle_ms: 100, ahead: 0, batch: 3, suspend: false };

/// A keeper, the regions, and the media beneath.
struct Bench {
    regions: Regions,
    tracking: Tracking,
    keeper: Keeper,
    media: BTreeMap<PageNo, Vec<u64>>,
    writing: BTreeMap<PageNo, Vec<u64>>,
    /// How many slots the log has, what is durable in them, and the records that are being written.
    slots: u64,
    log: BTreeMap<u64, Record>,
    recording: Vec<Record>,
    graces: Vec<u64>,
    rung: u64,
    now_ms: u64,
}

fn bench(regions: u64, limits: Limits, hot: impl IntoIterator<Item = u64>) -> Bench {
    bench_with_slots(regions, limits, hot, 8)
}

fn bench_with_slots(regions: u64, limits: Limits, hot: impl IntoIterator<Item = u64>, slots: u64) -> Bench {
    let geometry = Geometry::new(regions * REGION, TRACK).expect("valid");
    let words = |count: u64| Words::new(usize::try_from(count).expect("small")).expect("memory");
    let bitmap = || Bitmap::new(geometry.tracks(), words(Bitmap::words_for(geometry.tracks())));
    let tracking = Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()]);
    let regions = Regions::new(geometry, REGION, words(Regions::count_of(&geometry, REGION)));
    let hot = hot.into_iter().map(|region| region..region + 1);
    let keeper = Keeper::new(limits, &regions, PER_PAGE, hot, LogStart::empty(slots));
    let pages = regions.count().div_ceil(PER_PAGE);
    let media = (0..pages).map(|page| (PageNo(page), keeper.page(PageNo(page)).to_vec())).collect();
    let (writing, log, recording, graces) = (BTreeMap::new(), BTreeMap::new(), Vec::new(), Vec::new());
    Bench { regions, tracking, keeper, media, writing, slots, log, recording, graces, rung: 0, now_ms: 0 }
}

fn range(start: u64, count: u64) -> RegionRange {
    RegionRange { start: RegionNo(start), count }
}

impl Bench {
    fn poll(&mut self) {
        while let Some(op) = self.keeper.poll(self.now_ms, &self.regions, &self.tracking) {
            match op {
                Op::Write(Write::Page(page)) => {
                    let before = self.writing.insert(page, self.keeper.page(page).to_vec());
                    assert!(before.is_none(), "two writes of a page at once");
                }
                Op::Grace(id) => self.graces.push(id),
                Op::Write(Write::Record(number)) => {
                    let slot = number % self.slots;
                    assert!(self.recording.iter().all(|other| other.number % self.slots != slot), "two in a slot");
                    self.recording.push(self.keeper.record(number).expect("begun").clone());
                }
            }
        }
        self.check();
    }

    /// The records that count after a crash, in which of those under way the ones that `landed` has a bit for are
    /// whole, and the others torn.
    fn counting(&self, landed: usize) -> Vec<&Record> {
        let mut media: BTreeMap<u64, &Record> = self.log.iter().map(|(slot, record)| (*slot, record)).collect();
        for (at, record) in self.recording.iter().enumerate() {
            let slot = record.number % self.slots;
            if landed >> at & 1 == 1 {
                media.insert(slot, record)
            } else {
                media.remove(&slot)
            };
        }
        let Some(newest) = media.values().copied().max_by_key(|record| record.number) else { return Vec::new() };
        let count = |number| {
            let found = media.get(&(number % self.slots)).filter(|record| record.number == number);
            assert!(found.is_some() || number + newest.unsure >= newest.number, "{number} is missing and counts");
            found.copied()
        };
        (newest.tail..=newest.number).filter_map(count).collect()
    }

    /// Regions that records name which count after a crash, whichever of those under way have landed.
    fn named(&self) -> BTreeSet<RegionNo> {
        let after = |landed| self.counting(landed).iter().flat_map(|record| &record.regions).copied().collect();
        let all = (0..1_usize << self.recording.len()).map(after);
        all.reduce(|some: BTreeSet<_>, others| &some & &others).unwrap_or_default()
    }

    /// One of the records that are being written ends.
    fn finish_record(&mut self, at: usize, ok: bool) {
        let Some(at) = at.checked_rem(self.recording.len()) else { return };
        let record = self.recording.remove(at);
        let number = record.number;
        if ok {
            self.log.insert(number % self.slots, record);
        }
        self.keeper.written(Write::Record(number), ok, &self.regions);
        self.poll();
    }

    fn finish(&mut self, page: PageNo, ok: bool) {
        let Some(words) = self.writing.remove(&page) else { return };
        if ok {
            self.media.insert(page, words);
        }
        self.keeper.written(Write::Page(page), ok, &self.regions);
        self.poll();
    }

    fn finish_all(&mut self) {
        while !self.recording.is_empty() || !self.writing.is_empty() {
            self.finish_record(0, true);
            if let Some((page, _)) = self.writing.first_key_value() {
                self.finish(*page, true);
            }
        }
    }

    fn want(&mut self, wanted: RegionRange) {
        self.want_all(&[wanted]);
    }

    fn want_all(&mut self, wanted: &[RegionRange]) {
        for regions in wanted {
            self.keeper.tell(Message::Want { queue: 0, regions: *regions }, &self.regions, &self.tracking);
        }
        self.poll();
    }

    fn grace(&mut self, durable: bool) {
        for id in std::mem::take(&mut self.graces) {
            self.keeper.tell(Message::Graced { id, durable }, &self.regions, &self.tracking);
        }
        self.poll();
    }

    fn hear(&mut self) -> bool {
        let rung = self.keeper.take_wakes().contains(0);
        self.rung += u64::from(rung);
        rung
    }

    fn shows(words: &[u64], region: RegionNo) -> bool {
        words.first().is_some_and(|word| word >> (region.0 % PER_PAGE) & 1 == 1)
    }

    /// Whether a crash now would find the region in its page, whatever became of the write under way.
    fn is_shown(&self, region: RegionNo) -> bool {
        let page = PageNo(region.0 / PER_PAGE);
        Self::shows(&self.media[&page], region)
            && self.writing.get(&page).is_none_or(|words| Self::shows(words, region))
    }

    fn check(&self) {
        let named = self.named();
        for region in range(0, self.regions.count()).iter().filter(|region| self.regions.is_hot(*region)) {
            assert!(named.contains(&region) || self.is_shown(region), "{region:?} is hot and media may lose it");
        }
    }

    fn ticket(&self) -> Ticket {
        match self.tracking.admit(0) {
            Admission::Admitted(ticket) => ticket,
            Admission::Held => unreachable!("nothing holds"),
        }
    }
}

#[test]
fn regions_are_those_of_the_tracks() {
    let bench = bench(7, LIMITS, []);
    let tracks = |start, count| TrackRange { start: TrackNo(start), count };
    assert_eq!(bench.regions.of(tracks(0, 2)), range(0, 1));
    assert_eq!(bench.regions.of(tracks(1, 2)), range(0, 2));
    assert_eq!(bench.regions.of(tracks(3, 0)).count, 0);
    assert_eq!(bench.regions.tracks(RegionNo(6)), tracks(12, 2));
}

#[test]
fn a_want_is_answered_when_its_record_is_durable_and_not_before() {
    let mut bench = bench(12, LIMITS, []);
    assert!(!bench.regions.pin(range(4, 2)).hot);
    bench.want(range(4, 2));
    assert!(!bench.hear() && !bench.regions.all_hot(range(4, 2)));
    bench.finish_record(0, true);
    assert!(bench.hear() && bench.regions.all_hot(range(4, 2)));
    assert!(bench.regions.pin(range(4, 1)).hot);
}

#[test]
fn a_want_of_what_is_hot_already_is_answered_at_once() {
    let mut bench = bench(5, LIMITS, [0]);
    bench.want(range(0, 1));
    assert!(bench.hear(), "or a write whose letter crossed with another's record would wait for ever");
}

#[test]
fn an_unused_region_is_cleared_after_its_grace() {
    let mut bench = bench(5, LIMITS, 0..2);
    bench.regions.pin(range(1, 1));
    bench.now_ms = 100;
    bench.poll();
    assert!(!bench.regions.is_hot(RegionNo(0)) && bench.regions.is_hot(RegionNo(1)), "the second is pinned");
    assert!(bench.writing.is_empty() && bench.graces.len() == 1);
    bench.grace(true);
    assert_eq!(bench.writing[&PageNo(0)], [0b10]);
    bench.finish_all();
    assert_eq!((bench.media[&PageNo(0)][0], bench.keeper.figures().hot), (0b10, 1));
    bench.regions.unpin(range(1, 1));
    bench.now_ms = 200;
    bench.poll();
    assert!(bench.graces.is_empty(), "a second chance");
    bench.now_ms = 300;
    bench.poll();
    bench.grace(true);
    bench.finish_all();
    assert_eq!((bench.media[&PageNo(0)][0], bench.keeper.figures().cleared), (0, 2));
    assert_eq!(bench.keeper.wake_at(300), None, "nothing is left to clear");
}

#[test]
fn a_failed_grace_a_mark_or_anything_put_back_leaves_the_region_hot() {
    for what in 0..3 {
        let mut bench = bench(5, LIMITS, [0]);
        bench.now_ms = 100;
        bench.poll();
        assert!(!bench.regions.is_hot(RegionNo(0)));
        if what == 1 {
            let ticket = bench.ticket();
            let _ = bench.tracking.finish(ticket, TrackRange::one(TrackNo(1)));
        }
        if what == 2 {
            // Put back, and taken again.
            bench.tracking.mark_out_of_sync(TrackRange::one(TrackNo(1)));
            bench.tracking.out_of_sync().clear(TrackNo(1));
        }
        bench.grace(what > 0);
        assert!(bench.regions.is_hot(RegionNo(0)) && bench.writing.is_empty(), "{what}");
    }
}

#[test]
fn a_region_with_a_mark_in_either_structure_stays_hot() {
    for cut in [false, true] {
        let mut bench = bench(5, LIMITS, [0]);
        if cut {
            let epoch = Arc::new(Epoch::new());
            let geometry = *bench.tracking.geometry();
            let words = || Words::new(1).expect("memory");
            let structures = [Bitmap::new(geometry.tracks(), words()), Bitmap::new(geometry.tracks(), words())];
            bench.tracking = Tracking::new(geometry, 1, epoch.clone(), structures);
            bench.tracking.arm(1);
            epoch.begin(1);
            bench.tracking.release();
        }
        let ticket = bench.ticket();
        bench.tracking.mark(&ticket, TrackRange::one(TrackNo(1)));
        let _ = bench.tracking.finish(ticket, TrackRange::one(TrackNo(1)));
        assert_eq!(bench.tracking.out_of_sync().count(), u64::from(!cut));
        bench.now_ms = 1000;
        bench.poll();
        assert!(bench.regions.is_hot(RegionNo(0)) && bench.graces.is_empty());
    }
}

#[test]
fn a_want_gets_a_region_back_at_once_until_the_page_without_it_is_submitted() {
    // While the grace is under way.
    let mut cooled = bench(5, LIMITS, [0]);
    cooled.now_ms = 100;
    cooled.poll();
    cooled.want(range(0, 1));
    assert!(cooled.hear() && cooled.regions.is_hot(RegionNo(0)) && cooled.writing.is_empty());
    cooled.grace(true);
    assert!(cooled.writing.is_empty() && cooled.regions.is_hot(RegionNo(0)), "the grace was for nobody");

    // When the page is busy with another write.
    let mut busy = bench(5, LIMITS, [0, 3]);
    busy.regions.pin(range(0, 1));
    busy.now_ms = 100;
    busy.poll();
    busy.grace(true);
    assert_eq!(busy.writing[&PageNo(0)], [0b1]);
    busy.regions.unpin(range(0, 1));
    for now_ms in [200, 300] {
        busy.now_ms = now_ms;
        busy.poll();
    }
    busy.grace(true);
    assert!(!busy.regions.is_hot(RegionNo(0)));
    busy.want(range(0, 1));
    assert!(busy.hear() && busy.regions.is_hot(RegionNo(0)));
    busy.finish_all();
    assert_eq!(busy.media[&PageNo(0)], [0b1]);
    assert_eq!(busy.keeper.figures().page_writes, 1, "nothing is left to write");

    // When the page without it is on its way: with a record.
    let mut late = bench(5, LIMITS, [0]);
    late.now_ms = 100;
    late.poll();
    late.grace(true);
    late.want(range(0, 1));
    assert!(!late.hear() && !late.regions.is_hot(RegionNo(0)));
    late.finish(PageNo(0), true);
    assert!(!late.hear() && !late.regions.is_hot(RegionNo(0)));
    late.finish_record(0, true);
    assert!(late.hear() && late.regions.is_hot(RegionNo(0)));
}

#[test]
fn beyond_the_bound_the_least_used_are_cleared_and_marked_ones_stay() {
    let mut bench = bench(10, Limits { idle_ms: 100_000, batch: 10, ..LIMITS }, 0..10);
    for region in [0, 1, 2] {
        bench.tracking.mark_out_of_sync(bench.regions.tracks(RegionNo(region)));
    }
    bench.regions.pin(range(3, 3));
    bench.regions.unpin(range(3, 3));
    bench.poll();
    bench.grace(true);
    bench.finish_all();
    assert_eq!(bench.keeper.figures().hot, 4);
    let hot: Vec<u64> = (0..10).filter(|region| bench.regions.is_hot(RegionNo(*region))).collect();
    assert_eq!(hot.iter().filter(|region| **region < 3).count(), 3, "{hot:?}");
    assert!((3..6).contains(&hot[3]), "what was used goes last: {hot:?}");
}

#[test]
fn a_huge_volume_is_gone_round_in_stretches() {
    let count = 20_000;
    let mut bench = bench(count, LIMITS, 0..count);
    let used = |bench: &Bench| range(0, count).iter().filter(|region| bench.regions.is_used(*region)).count();
    bench.regions.pin(range(0, count));
    bench.regions.unpin(range(0, count));
    bench.tracking.out_of_sync().set_all();
    bench.now_ms = LIMITS.idle_ms;
    for stretch in 1.. {
        let before = used(&bench);
        (0..2).for_each(|_| bench.poll());
        let passed = before - used(&bench);
        assert!((1..=1024).contains(&passed), "{passed} regions at once");
        if passed == before {
            assert!((20..=30).contains(&stretch), "{stretch}");
            break;
        }
        let wake_ms = bench.keeper.wake_at(bench.now_ms).expect("it goes on");
        assert!((1..=10).contains(&(wake_ms - bench.now_ms)), "neither without a rest nor for long");
        bench.now_ms = wake_ms;
    }
}

#[test]
fn what_is_cooled_does_not_wait_for_the_end_of_a_long_round() {
    let count = 300 * 4096;
    let mut bench = bench(count, LIMITS, 0..count);
    for region in range(1, count - 1).iter() {
        bench.tracking.mark_out_of_sync(bench.regions.tracks(region));
    }
    let mut now_ms = LIMITS.idle_ms;
    while bench.keeper.poll(now_ms, &bench.regions, &bench.tracking).is_none() {
        now_ms = bench.keeper.wake_at(now_ms).expect("it goes on");
        assert!(now_ms <= LIMITS.idle_ms + 1010, "no grace for region 0");
    }
}

#[test]
fn a_sequential_writer_waits_only_at_its_beginning() {
    let mut bench = bench(60, Limits { ahead: 8, hot_max: 100, ..LIMITS }, []);
    let mut waited = 0;
    for region in 0..60 {
        let pinned = bench.regions.pin(range(region, 1));
        if !pinned.hot {
            waited += 1;
            bench.want(range(region, 1));
        } else if pinned.tell {
            bench.keeper.tell(Message::Look, &bench.regions, &bench.tracking);
            bench.poll();
        }
        bench.finish_all();
        bench.regions.unpin(range(region, 1));
    }
    // One region alone is no sequence, and two may be neighbours by chance.
    assert_eq!((waited, bench.keeper.figures().marked_ahead), (3, 57));
    assert_eq!(bench.keeper.figures().hot, 60);
}

#[test]
fn what_is_said_to_be_durable_after_a_failure_is_not_believed() {
    let mut bench = bench(12, LIMITS, []);
    bench.want(range(1, 1));
    bench.want(range(6, 1));
    bench.finish_record(1, false);
    bench.finish_record(0, true);
    assert!(bench.hear() && !bench.regions.is_hot(RegionNo(1)) && bench.keeper.figures().failed);
}

#[test]
fn a_page_that_cannot_be_written_leaves_hot_what_no_write_has_cleared() {
    let mut bench = bench(5, LIMITS, 0..3);
    bench.regions.pin(range(1, 2));
    bench.now_ms = 100;
    bench.poll();
    bench.grace(true);
    assert_eq!(bench.writing[&PageNo(0)], [0b110]);
    bench.regions.unpin(range(1, 2));
    bench.tracking.mark_out_of_sync(bench.regions.tracks(RegionNo(2)));
    for now_ms in [200, 300] {
        bench.now_ms = now_ms;
        bench.poll();
    }
    bench.grace(true);
    assert!(!bench.regions.is_hot(RegionNo(1)), "cleared, and waits for the page");
    bench.finish(PageNo(0), false);
    let hot: Vec<_> = range(0, 3).iter().map(|region| bench.regions.is_hot(region)).collect();
    assert_eq!(hot, [false, true, true], "of the first nobody knows");
    assert!(bench.keeper.figures().failed && bench.writing.is_empty());
}

#[test]
fn a_failed_write_is_final() {
    for suspend in [false, true] {
        let mut bench = bench(12, Limits { suspend, ..LIMITS }, [0]);
        bench.regions.pin(range(6, 1));
        bench.want(range(6, 1));
        bench.finish_record(0, false);
        assert!(bench.hear() && !bench.regions.all_hot(range(6, 1)));
        assert_eq!(bench.regions.refuses(), !suspend);
        assert!(bench.keeper.figures().failed && bench.regions.is_hot(RegionNo(0)));
        bench.now_ms = 10_000;
        bench.want(range(1, 1));
        assert!(
            bench.recording.is_empty() && bench.writing.is_empty() && bench.graces.is_empty(),
            "neither marked nor cleared"
        );
        assert!(bench.hear(), "whoever comes later must not wait for ever either");
    }
}

proptest! {
    /// Whatever comes in whatever order, a hot region survives a crash at every step, and whoever waits is told.
    #[test]
    fn what_is_hot_is_durable(
        hot in 0_u64..1 << 12, ahead in 0_u64..4, slots in prop::sample::select(vec![2_u64, 3, 4, 8]),
        steps in prop::collection::vec((0_u8..11, 0_u64..12, 1_u64..7), 1..300),
    ) {
        let hot = (0..12).filter(|region| hot >> region & 1 == 1);
        let mut bench = bench_with_slots(12, Limits { ahead, ..LIMITS }, hot, slots);
        let mut pinned: Vec<(RegionRange, bool)> = Vec::new();
        for (what, at, count) in steps {
            let regions = range(at, count.min(12 - at));
            match what {
                0..=2 => {
                    let found = bench.regions.pin(regions);
                    pinned.push((regions, found.hot));
                    if !found.hot {
                        bench.want(regions);
                    }
                }
                3 | 4 if !pinned.is_empty() => {
                    let at = usize::try_from(at).expect("small") % pinned.len();
                    if pinned[at].1 {
                        bench.regions.unpin(pinned.swap_remove(at).0);
                    }
                }
                5 => bench.finish(PageNo(at % 3), true),
                6 => bench.grace(at % 4 != 0),
                7 => bench.now_ms += at * 20,
                8 | 9 => bench.finish_record(usize::try_from(at).expect("small"), true),
                _ => bench.poll(),
            }
            bench.check();
            if bench.hear() {
                for (regions, hot) in &mut pinned {
                    *hot = bench.regions.all_hot(*regions);
                }
            }
            for (regions, hot) in &pinned {
                prop_assert!(!hot || bench.regions.all_hot(*regions), "cooled although it is pinned");
            }
        }
        for _ in 0..4 {
            bench.finish_all();
            bench.grace(true);
        }
        if bench.hear() {
            for (regions, hot) in &mut pinned {
                *hot = bench.regions.all_hot(*regions);
            }
        }
        prop_assert!(pinned.iter().all(|(_, hot)| *hot), "somebody waits for ever");
        bench.finish_all();
        let is_set = |region: &RegionNo| Bench::shows(bench.keeper.page(PageNo(region.0 / PER_PAGE)), *region);
        prop_assert!(bench.named().iter().all(is_set), "a record counts that names what was cleared");
    }
}
