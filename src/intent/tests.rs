//! Tests of the keeper against a model of media: a page or slot of the log holds what the last finished write left, or,
//! while one is under way, that or any mixture of the two.

use super::*;
use crate::geometry::{Geometry, TrackNo, TrackRange};
use crate::memory::Words;
use crate::tracking::{Admission, Bitmap, Epoch, Ticket, Tracking};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;

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
    /// Slots of the log, the number of the newest durable record, and the record that is being written.
    slots: Vec<Option<Record>>,
    newest: u64,
    recording: Option<Record>,
    graces: Vec<u64>,
    rung: u64,
    now_ms: u64,
}

fn bench(regions: u64, limits: Limits, hot: impl IntoIterator<Item = u64>) -> Bench {
    bench_with_log(regions, limits, hot, 0)
}

fn bench_with_log(regions: u64, limits: Limits, hot: impl IntoIterator<Item = u64>, slots: u64) -> Bench {
    let geometry = Geometry::new(regions * REGION, TRACK).expect("valid");
    let words = |count: u64| Words::new(usize::try_from(count).expect("small")).expect("memory");
    let bitmap = || Bitmap::new(geometry.tracks(), words(Bitmap::words_for(geometry.tracks())));
    let tracking = Tracking::new(geometry, 1, Arc::new(Epoch::new()), [bitmap(), bitmap()]);
    let regions = Regions::new(geometry, REGION, words(Regions::count_of(&geometry, REGION)));
    let hot = hot.into_iter().map(|region| region..region + 1);
    let keeper = Keeper::new(limits, &regions, PER_PAGE, hot, LogStart { slots, ..LogStart::NONE });
    let pages = regions.count().div_ceil(PER_PAGE);
    let media = (0..pages).map(|page| (PageNo(page), keeper.page(PageNo(page)).to_vec())).collect();
    let slots = (0..slots).map(|_| None).collect();
    let (writing, graces) = (BTreeMap::new(), Vec::new());
    Bench { regions, tracking, keeper, media, writing, slots, newest: 0, recording: None, graces, rung: 0, now_ms: 0 }
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
                Op::Write(Write::Record) => {
                    let record = self.keeper.record().expect("begun").clone();
                    assert_eq!(record.number, self.newest + 1);
                    assert!(self.recording.is_none(), "two records at once");
                    let counting = self.counting(false).map(|record| record.number % self.slots.len() as u64);
                    let slot = record.number % self.slots.len() as u64;
                    assert!(counting.into_iter().all(|taken| taken != slot), "a record that counts is written over");
                    self.recording = Some(record);
                }
            }
        }
        self.check();
    }

    /// The records that count after a crash, in which the one under way has `landed` or has not.
    fn counting(&self, landed: bool) -> impl Iterator<Item = &Record> {
        let last = self.recording.as_ref().filter(|_| landed);
        let slot = |number: u64| self.slots[usize::try_from(number).expect("small") % self.slots.len()].as_ref();
        let newest = last.or_else(|| if self.newest > 0 { slot(self.newest) } else { None });
        let counts = newest.map_or(1..1, |newest| newest.tail..newest.number);
        counts
            .map(move |number| slot(number).filter(|record| record.number == number).expect("it counts"))
            .chain(newest)
    }

    fn finish_record(&mut self, ok: bool) {
        let Some(record) = self.recording.take() else { return };
        if ok {
            self.newest = record.number;
            let slot = usize::try_from(record.number).expect("small") % self.slots.len();
            self.slots[slot] = Some(record);
        }
        self.keeper.written(Write::Record, ok, &self.regions);
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
        while self.recording.is_some() || !self.writing.is_empty() {
            self.finish_record(true);
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

    /// Whether a crash now would find the region hot, whatever became of the writes under way.
    fn is_durable(&self, region: RegionNo) -> bool {
        let page = PageNo(region.0 / PER_PAGE);
        let shown = Self::shows(&self.media[&page], region)
            && self.writing.get(&page).is_none_or(|words| Self::shows(words, region));
        let named = |landed| self.counting(landed).any(|record| record.regions.contains(&region));
        shown || named(false) && named(true)
    }

    fn check(&self) {
        for region in range(0, self.regions.count()).iter() {
            assert!(!self.regions.is_hot(region) || self.is_durable(region), "{region:?} is hot and media may lose it");
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
fn a_want_is_answered_when_its_page_is_durable_and_not_before() {
    let mut bench = bench(12, LIMITS, []);
    assert!(!bench.regions.pin(range(4, 2)).hot);
    bench.want(range(4, 2));
    assert_eq!(bench.writing.len(), 2, "the regions lie in two pages");
    bench.finish(PageNo(0), true);
    assert!(!bench.hear() && !bench.regions.all_hot(range(4, 2)));
    bench.finish(PageNo(1), true);
    assert!(bench.hear() && bench.regions.all_hot(range(4, 2)));
    assert!(bench.regions.pin(range(4, 1)).hot);
}

#[test]
fn what_comes_while_a_page_is_written_goes_with_the_next_write_of_it() {
    let mut bench = bench(5, LIMITS, []);
    bench.want(range(0, 1));
    for region in 1..5 {
        bench.want(range(region, 1));
    }
    assert_eq!(bench.keeper.figures().page_writes, 1);
    bench.finish(PageNo(0), true);
    assert!(bench.regions.is_hot(RegionNo(0)) && !bench.regions.is_hot(RegionNo(1)));
    bench.finish(PageNo(0), true);
    assert!(bench.regions.all_hot(range(0, 5)));
    assert_eq!(bench.keeper.figures().page_writes, 2, "one for all four");
}

#[test]
fn a_want_of_what_is_hot_already_is_answered_at_once() {
    let mut bench = bench(5, LIMITS, [0]);
    bench.want(range(0, 1));
    assert!(bench.hear(), "or a write whose letter crossed with another's page write would wait for ever");
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
    let mut busy = bench(5, LIMITS, [0]);
    busy.now_ms = 100;
    busy.poll();
    busy.want(range(3, 1));
    busy.grace(true);
    busy.want(range(0, 1));
    assert!(busy.hear() && busy.regions.is_hot(RegionNo(0)));
    busy.finish_all();
    assert_eq!(busy.media[&PageNo(0)], [0b1001]);
    assert_eq!(busy.keeper.figures().page_writes, 1, "nothing is left to write");

    // When the page without it is on its way: the next write of it.
    let mut late = bench(5, LIMITS, [0]);
    late.now_ms = 100;
    late.poll();
    late.grace(true);
    late.want(range(0, 1));
    assert!(!late.hear() && !late.regions.is_hot(RegionNo(0)));
    late.finish(PageNo(0), true);
    assert!(!late.hear() && !late.regions.is_hot(RegionNo(0)));
    late.finish(PageNo(0), true);
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
fn writes_to_several_pages_share_a_record() {
    let mut bench = bench_with_log(15, LIMITS, [], 8);
    bench.want(range(0, 1));
    bench.want(range(7, 1));
    assert!(bench.writing.is_empty(), "what comes while a record is written goes with the next");
    bench.finish_record(true);
    let second = bench.recording.as_ref().expect("the next");
    assert_eq!((second.number, second.tail, second.regions.as_slice()), (2, 1, [RegionNo(7)].as_slice()));
    bench.finish_all();
    bench.want_all(&[range(4, 2), range(14, 1)]);
    let record = bench.recording.as_ref().expect("one for all three pages");
    assert_eq!((record.number, record.tail, record.regions.as_slice()), (3, 1, [4, 5, 14].map(RegionNo).as_slice()));
    assert!(bench.writing.is_empty() && !bench.regions.is_hot(RegionNo(4)));
    bench.finish_record(true);
    assert!(bench.hear() && bench.regions.all_hot(range(4, 2)) && bench.regions.is_hot(RegionNo(14)));
    // Nothing has to be written to the pages of the record before there is something to clear in them.
    assert_eq!(bench.keeper.figures().page_writes, 0);
    while bench.keeper.figures().hot > 0 {
        assert!(bench.now_ms < 1000, "a region stays hot");
        bench.now_ms += 100;
        bench.poll();
        bench.grace(true);
        bench.finish_all();
    }
    assert!(bench.media.values().all(|page| page == &[0]), "written without what was never in them");
    let counting: Vec<_> = bench.counting(false).collect();
    assert!(counting.len() == 1 && counting[0].regions.is_empty(), "media is told that no other counts: {counting:?}");
}

#[test]
fn a_record_of_what_was_cleared_does_not_count_for_another_page() {
    let mut bench = bench_with_log(15, LIMITS, [], 8);
    let (idle, used) = (RegionNo(0), RegionNo(7));
    bench.want_all(&[range(idle.0, 1), range(used.0, 1)]);
    assert_eq!(bench.recording.as_ref().expect("both").regions, [idle, used]);
    bench.finish_all();
    bench.tracking.mark_out_of_sync(bench.regions.tracks(used));
    while bench.regions.is_hot(idle) {
        assert!(bench.now_ms < 1000, "the region stays hot");
        bench.now_ms += 100;
        bench.poll();
    }
    bench.grace(true);
    bench.finish_all();
    let counts = bench.counting(false).any(|record| record.regions.contains(&idle));
    assert!(!counts && !Bench::shows(&bench.media[&PageNo(0)], idle), "a crash would have it copied again");
    assert!(bench.regions.is_hot(used) && bench.is_durable(used));
}

#[test]
fn what_was_cleared_is_told_also_when_pages_end_one_by_one_between_records() {
    let mut bench = bench_with_log(15, LIMITS, [], 8);
    bench.want_all(&[range(0, 1), range(7, 1)]);
    bench.finish_all();
    bench.tracking.mark_out_of_sync(bench.regions.tracks(RegionNo(7)));
    while bench.graces.is_empty() {
        assert!(bench.now_ms < 1000, "nothing is cleared");
        bench.now_ms += 100;
        bench.poll();
    }
    bench.grace(true);
    bench.finish(PageNo(0), true);
    bench.want(range(10, 1));
    bench.finish_record(true);
    bench.finish_all();
    let counts = bench.counting(false).any(|record| record.regions.contains(&RegionNo(0)));
    assert!(!counts, "a crash would have it copied again");
}

#[test]
fn a_log_that_fills_up_while_pages_are_written_for_another_reason_has_room_again() {
    let mut bench = bench_with_log(15, LIMITS, [1], 2);
    while bench.graces.is_empty() {
        assert!(bench.now_ms < 1000, "nothing is cleared");
        bench.now_ms += 100;
        bench.poll();
    }
    // The only record that there is room for, and its page with it.
    bench.want(range(0, 1));
    bench.finish_record(true);
    assert!(bench.writing.contains_key(&PageNo(0)), "it is full");
    // Something else is cleared in the page, which has to be written again.
    bench.grace(true);
    bench.want(range(5, 1));
    bench.finish(PageNo(0), true);
    assert_eq!(bench.recording.as_ref().expect("there is room").regions, [RegionNo(5)]);
    bench.want(range(10, 1));
    bench.finish_all();
    assert!(bench.regions.is_hot(RegionNo(10)), "nobody makes room");
}

#[test]
fn a_log_that_fills_up_has_its_pages_written_beside_it() {
    let mut bench = bench_with_log(5 * 400, Limits { hot_max: 10_000, ..LIMITS }, [], 8);
    for step in 0..400 {
        bench.want_all(&[range(step * 5, 1), range((step * 5 + 1001) % 2000, 1)]);
        while bench.recording.is_some() {
            bench.finish_record(true);
            let pages: Vec<_> = bench.writing.keys().copied().collect();
            for page in pages {
                bench.finish(page, true);
            }
        }
        bench.finish_all();
        assert!(bench.hear());
    }
    let figures = bench.keeper.figures();
    assert!(figures.records > 300, "the log was used all the way: {figures:?}");
    assert!(figures.page_writes > 600 && figures.page_writes <= 800, "and its pages written: {figures:?}");
}

#[test]
fn a_failed_record_is_final() {
    let mut bench = bench_with_log(15, LIMITS, 0..1, 4);
    bench.want(range(4, 2));
    bench.finish_record(false);
    assert!(bench.hear() && !bench.regions.is_hot(RegionNo(4)) && bench.regions.is_hot(RegionNo(0)));
    assert!(bench.regions.refuses() && bench.keeper.figures().failed);
}

#[test]
fn what_is_said_to_be_durable_after_a_failure_is_not_believed() {
    let mut bench = bench(12, LIMITS, []);
    bench.want_all(&[range(1, 1), range(6, 1)]);
    bench.finish(PageNo(1), false);
    bench.finish(PageNo(0), true);
    assert!(bench.hear() && !bench.regions.is_hot(RegionNo(1)) && bench.keeper.figures().failed);
}

#[test]
fn a_failed_write_is_final() {
    for suspend in [false, true] {
        let mut bench = bench(12, Limits { suspend, ..LIMITS }, [0]);
        bench.regions.pin(range(6, 1));
        bench.want(range(6, 1));
        bench.finish(PageNo(1), false);
        assert!(bench.hear() && !bench.regions.all_hot(range(6, 1)));
        assert_eq!(bench.regions.refuses(), !suspend);
        assert!(bench.keeper.figures().failed && bench.regions.is_hot(RegionNo(0)));
        bench.now_ms = 10_000;
        bench.want(range(1, 1));
        assert!(bench.writing.is_empty() && bench.graces.is_empty(), "neither marked nor cleared");
        assert!(bench.hear(), "whoever comes later must not wait for ever either");
    }
}

proptest! {
    /// Whatever comes in whatever order, a hot region survives a crash at every step, and whoever waits is told.
    #[test]
    fn what_is_hot_is_durable(
        hot in 0_u64..1 << 12, ahead in 0_u64..4, slots in prop::sample::select(vec![0_u64, 2, 3, 4, 8]),
        steps in prop::collection::vec((0_u8..11, 0_u64..12, 1_u64..7), 1..300),
    ) {
        let hot = (0..12).filter(|region| hot >> region & 1 == 1);
        let mut bench = bench_with_log(12, Limits { ahead, ..LIMITS }, hot, slots);
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
                8 | 9 => bench.finish_record(true),
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
        let named = bench.counting(false).flat_map(|record| &record.regions);
        prop_assert!(named.into_iter().all(is_set), "a record counts that names what was cleared");
    }
}
