//! Of the log: records ahead of the pages.

use super::*;

#[test]
fn writes_to_several_pages_share_a_record() {
    let mut bench = bench(15, LIMITS, []);
    bench.want_all(&[range(4, 2), range(14, 1)]);
    let regions = [4, 5, 14].map(RegionNo).to_vec();
    assert_eq!(bench.recording, [Record { number: 1, tail: 1, unsure: 0, regions }], "one for all three pages");
    assert!(bench.writing.is_empty() && !bench.regions.is_hot(RegionNo(4)));
    bench.finish_record(0, true);
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
    let counting = bench.counting(0);
    assert!(counting.len() == 1 && counting[0].regions.is_empty(), "media is told that no other counts: {counting:?}");
}

#[test]
fn a_record_counts_from_its_own_end_on() {
    let mut bench = bench(15, LIMITS, []);
    for region in 0..6 {
        bench.want(range(region, 1));
    }
    let begun: Vec<_> = bench.recording.iter().map(|record| (record.number, record.tail, record.unsure)).collect();
    assert_eq!(begun, [(1, 1, 0), (2, 1, 1), (3, 1, 2), (4, 1, 3)], "nobody waits for another's, up to a bound");
    bench.finish_record(2, true);
    assert!(bench.hear() && bench.regions.is_hot(RegionNo(2)) && !bench.regions.is_hot(RegionNo(1)));
    assert_eq!(bench.recording.len(), 3, "the bound is from the oldest on, or they would meet in a slot");
    bench.finish_record(0, true);
    assert_eq!(bench.recording.last().expect("the next").regions, [4, 5].map(RegionNo), "what has come meanwhile");
    bench.finish_all();
    assert!(bench.regions.all_hot(range(0, 6)));
}

#[test]
fn a_record_of_what_was_cleared_does_not_count_for_another_page() {
    let mut bench = bench(15, LIMITS, []);
    let (idle, used) = (RegionNo(0), RegionNo(7));
    bench.want_all(&[range(idle.0, 1), range(used.0, 1)]);
    assert_eq!(bench.recording[0].regions, [idle, used]);
    bench.finish_all();
    bench.tracking.mark_out_of_sync(bench.regions.tracks(used));
    while bench.regions.is_hot(idle) {
        assert!(bench.now_ms < 1000, "the region stays hot");
        bench.now_ms += 100;
        bench.poll();
    }
    bench.grace(true);
    bench.finish_all();
    let counts = bench.named().contains(&idle);
    assert!(!counts && !Bench::shows(&bench.media[&PageNo(0)], idle), "a crash would have it copied again");
    assert!(bench.regions.is_hot(used));
}

#[test]
fn what_was_cleared_is_told_also_when_pages_end_one_by_one_between_records() {
    let mut bench = bench(15, LIMITS, []);
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
    bench.finish_all();
    assert!(!bench.named().contains(&RegionNo(0)), "a crash would have it copied again");
}

#[test]
fn a_log_that_fills_up_while_pages_are_written_for_another_reason_has_room_again() {
    let mut bench = bench_with_slots(15, LIMITS, [1], 2);
    while bench.graces.is_empty() {
        assert!(bench.now_ms < 1000, "nothing is cleared");
        bench.now_ms += 100;
        bench.poll();
    }
    // The only record that there is room for, and its page with it.
    bench.want(range(0, 1));
    bench.finish_record(0, true);
    assert!(bench.writing.contains_key(&PageNo(0)), "it is full");
    // Something else is cleared in the page, which has to be written again.
    bench.grace(true);
    bench.want(range(5, 1));
    bench.finish(PageNo(0), true);
    assert_eq!(bench.recording[0].regions, [RegionNo(5)], "there is room");
    bench.want(range(10, 1));
    bench.finish_all();
    assert!(bench.regions.is_hot(RegionNo(10)), "nobody makes room");
}

#[test]
fn a_log_that_fills_up_has_its_pages_written_beside_it() {
    let mut bench = bench_with_slots(5 * 400, Limits { hot_max: 10_000, ..LIMITS }, [], 8);
    for step in 0..400 {
        bench.want_all(&[range(step * 5, 1), range((step * 5 + 1001) % 2000, 1)]);
        while !bench.recording.is_empty() {
            bench.finish_record(0, true);
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
