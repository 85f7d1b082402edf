//! Every byte of what is on media changed, one at a time: found, and a superset copied, or refused.

use std::path::Path;
use std::sync::Arc;

use farpoint::geometry::TrackNo;
use farpoint::intent::{Record, RegionNo};
use farpoint::metadata::layout::RECORD_BYTES;
use farpoint::metadata::media::{Media, Way};

use super::disk::Disk;
use super::history::{Life, TRACKS, TRACKS_PER_REGION, assert_safe, few, start, write_page, write_record};

#[test]
fn every_changed_byte_leaves_a_superset_or_a_refusal() {
    for runs in 0..=2 {
        let mut life = Life::new();
        life.live_until(runs, &few()).expect("nothing fails");
        let content = life.disk.content();
        let used = content.iter().rposition(|byte| *byte != 0).expect("something") + 1;
        for at in 0..used {
            let mut changed = content.clone();
            changed[at] ^= 1 << (at % 8);
            assert_safe(changed, &life.truth, &|| format!("run {runs}, byte {at}"));
        }
    }
}

#[test]
fn either_superblock_alone_is_enough_and_none_is_a_refusal() {
    let mut life = Life::new();
    life.live_until(2, &few()).expect("nothing fails");
    for slot in 0..2 {
        let mut content = life.disk.content();
        content[slot * 4096 + 600..slot * 4096 + 700].fill(0xaa);
        assert!(start(content.clone()).is_ok());
        assert_safe(content, &life.truth, &|| format!("slot {slot}"));
    }
    let mut content = life.disk.content();
    content[600] = 1;
    content[4096 + 600] = 1;
    let message = start(content).expect_err("nothing to go by").to_string();
    assert!(message.contains("damaged") && message.contains("--force"), "{message}");
}

#[test]
fn damaged_pages_are_counted_and_absent_ones_are_not() {
    let mut life = Life::new();
    life.live_until(0, &few()).expect("nothing fails");
    let (_, recovery) = start(life.disk.content()).expect("whole");
    assert_eq!((recovery.hot.damaged_pages, recovery.hot.absent_pages), (0, 1));
    let mut life = Life::new();
    life.live_until(2, &few()).expect("nothing fails");
    let mut content = life.disk.content();
    content[16384 + 4000] ^= 1;
    let (_, recovery) = start(content).expect("whole");
    assert_eq!((recovery.hot.damaged_pages, recovery.hot.absent_pages), (1, 0));
    assert_eq!(recovery.hot.count(), recovery.hot.regions);
}

/// What the last run has put into the log: a region each, the newest last.
#[test]
fn a_record_is_read_from_either_copy_and_one_that_is_lost_makes_everything_hot() {
    let mut life = Life::new();
    life.live_until(2, &few()).expect("nothing fails");
    let layout = Life::superblock().layout;
    let offset = |record: u64, copy: u64| {
        usize::try_from(layout.log_offset() + record % 4 * RECORD_BYTES as u64 + copy * 4096).expect("small")
    };
    let (_, recovery) = start(life.disk.content()).expect("whole");
    let (newest, counting) = (recovery.logged.start.next - 1, recovery.logged.records);
    assert_eq!((counting, recovery.logged.regions.len(), recovery.logged.damaged), (2, 1, false));
    for record in [newest - 1, newest] {
        for copy in 0..2 {
            let mut content = life.disk.content();
            content[offset(record, copy)..][..4096].fill(0xaa);
            let (_, found) = start(content).expect("whole");
            assert_eq!((found.hot, found.logged), (recovery.hot.clone(), recovery.logged.clone()));
        }
    }
    // Both copies of a record that is not the newest.
    let mut content = life.disk.content();
    content[offset(newest - 1, 0)..][..8192].fill(0xaa);
    let (_, found) = start(content).expect("whole");
    assert!(found.logged.damaged && found.hot.count() == found.hot.regions, "{found:?}");
    assert_eq!((found.way, found.tracks.count()), (Way::Unclean, TRACKS));
    // But for one that was under way when the newest was begun, and has not come there.
    let disk = Arc::new(Disk::new(life.disk.content()));
    let media = Media::open(Path::new("/metadata"), disk.clone()).expect("whole");
    let last = Record { number: newest + 1, tail: newest - 1, unsure: 1, regions: vec![RegionNo(2)] };
    // What was in the slot of the one before the newest before.
    let older = Record { number: newest - 4, tail: newest - 4, unsure: 0, regions: vec![RegionNo(50)] };
    let before = Arc::new(Disk::new(life.disk.content()));
    write_record(&Media::open(Path::new("/metadata"), before.clone()).expect("whole"), &older).expect("written");
    let before = before.content();
    write_record(&media, &last).expect("written");
    for torn in 0..=1 {
        let mut content = disk.content();
        content[offset(newest, torn)..][..4096].fill(0xaa);
        content[offset(newest, 1 - torn)..][..4096].copy_from_slice(&before[offset(newest, 1 - torn)..][..4096]);
        let (_, found) = start(content).expect("whole");
        assert_eq!((found.logged.damaged, found.logged.lost), (false, 1));
        assert!(!found.logged.regions.contains(&RegionNo(50)), "it is out of date");
    }
    for (record, copies, is_lost) in
        [(newest, [0, 0], true), (newest, [0xaa, 0], true), (newest, [0xaa, 0xaa], false), (newest - 1, [0, 0], false)]
    {
        let mut content = disk.content();
        for (copy, byte) in (0..).zip(copies) {
            content[offset(record, copy)..][..4096].fill(byte);
        }
        let (_, found) = start(content).expect("whole");
        assert_eq!((found.logged.damaged, found.logged.lost), (!is_lost, u64::from(is_lost)), "{record} {copies:?}");
        assert!(found.logged.regions.contains(&RegionNo(2)), "the newest counts");
    }
}

#[test]
fn a_long_record_torn_at_every_sector_is_there_or_is_not() {
    let mut life = Life::new();
    life.live_until(2, &few()).expect("nothing fails");
    let before = life.disk.content();
    let (_, old) = start(before.clone()).expect("whole");
    let (number, layout) = (old.logged.start.next, Life::superblock().layout);
    let media = Media::open(Path::new("/metadata"), life.disk.clone()).expect("whole");
    let regions = (0..TRACKS / TRACKS_PER_REGION).map(RegionNo).collect();
    let record = Record { number, tail: number - old.logged.records, unsure: 0, regions };
    write_record(&media, &record).expect("written");
    let after = life.disk.content();
    let at = usize::try_from(layout.log_offset() + number % 4 * RECORD_BYTES as u64).expect("small");
    let (mut there, mut missing) = (0, 0);
    for torn in (at..=at + RECORD_BYTES).step_by(512) {
        for (first, last) in [(&after, &before), (&before, &after)] {
            let content = [&first[..torn], &last[torn..]].concat();
            let (_, found) = start(content.clone()).expect("whole");
            if found.logged.start.next == number {
                assert_eq!(found.logged, old.logged, "torn at {torn}");
                missing += 1;
            } else {
                assert_eq!(found.hot.count(), found.hot.regions, "torn at {torn}");
                there += 1;
            }
            assert!(!found.logged.damaged);
            assert_safe(content, &life.truth, &|| format!("torn at {torn}"));
        }
    }
    // It takes two sectors of either copy. Of the 17 places to tear from the front 15 have the first copy whole, from
    // behind 9 the second.
    assert_eq!((there, missing), (15 + 9, 2 + 8));
}

/// A page that was lost whole, or a bug that cleared what was marked: both are believed, and what was missing is on
/// media before the clean stop is forgotten.
#[test]
fn saved_tracks_whose_region_is_cold_are_copied_and_made_hot_before_anything_is_served() {
    let mut life = Life::new();
    life.live_until(1, &few()).expect("nothing fails");
    let media = || Media::open(Path::new("/metadata"), life.disk.clone()).expect("whole");
    write_page(&media(), &[1 << 3]).expect("written");
    let number = media().recovery().expect("readable").logged.start.next;
    write_record(&media(), &Record { number, tail: number, unsure: 0, regions: Vec::new() }).expect("written");
    let recovery = media().recovery().expect("readable");
    assert_eq!((recovery.way, recovery.tracks.count()), (Way::SavedDamaged, life.truth.tracks.len() as u64 + 1024));
    assert!(recovery.tracks.contains(TrackNo(3 * TRACKS_PER_REGION)));
    media().begin(&recovery, true).expect("written");
    let (_, recovery) = start(life.disk.content()).expect("whole");
    assert_eq!(recovery.way, Way::Unclean);
    assert_safe(life.disk.content(), &life.truth, &|| "after the next crash".to_owned());
}

#[test]
fn a_run_without_intent_means_everything_for_good_until_a_clean_stop() {
    let mut life = Life::new();
    life.live_until(1, &few()).expect("nothing fails");
    let media = || Media::open(Path::new("/metadata"), life.disk.clone()).expect("whole");
    media().begin(&media().recovery().expect("readable"), false).expect("written");
    for way in [Way::Everything, Way::Unclean] {
        let recovery = media().recovery().expect("readable");
        assert_eq!((recovery.way, recovery.tracks.count()), (way, TRACKS), "a page on media said less");
        media().begin(&recovery, true).expect("written");
    }
    assert!(media().superblock().incomplete);
}
