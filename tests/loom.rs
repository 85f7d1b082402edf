//! The lock-free protocol of tracking under every interleaving that its memory model allows (H2, H12, H14).
//!
//! `cargo test --release --features loom --test loom`. Loom needs few threads and few atomics, so each test is one
//! meeting of two.

use farpoint::geometry::{Geometry, TrackNo, TrackRange};
use farpoint::intent::{RegionNo, RegionRange, Regions};
use farpoint::memory::{Words, sequential::AtomicU64};
use farpoint::tracking::claims::STRIPES;
use farpoint::tracking::{Admission, Bitmap, Collision, Epoch, Ticket, Tracking, Waiter, Waiters};
use loom::sync::atomic::Ordering::SeqCst;
use loom::thread;
use std::sync::Arc;

const TRACK: TrackNo = TrackNo(0);
const QUEUE: usize = 0;

fn one() -> TrackRange {
    TrackRange::one(TRACK)
}

fn bitmap(tracks: u64) -> Bitmap {
    let words = usize::try_from(Bitmap::words_for(tracks)).expect("small");
    Bitmap::new(tracks, Words::new(words).expect("memory"))
}

/// A volume with one queue.
fn volume_of(tracks: u64, epoch: &Arc<Epoch>) -> Arc<Tracking> {
    let geometry = Geometry::new(tracks * 4096, 4096).expect("valid");
    Arc::new(Tracking::new(geometry, 1, epoch.clone(), [bitmap(tracks), bitmap(tracks)]))
}

fn volume(epoch: &Arc<Epoch>) -> Arc<Tracking> {
    volume_of(2, epoch)
}

fn admitted(tracking: &Tracking) -> Ticket {
    match tracking.admit(QUEUE) {
        Admission::Admitted(ticket) => ticket,
        Admission::Held => unreachable!("nothing holds"),
    }
}

/// A write that was let in, to its end; returns whether the drain has to be told.
fn write(tracking: &Tracking, ticket: Ticket) -> bool {
    tracking.mark(&ticket, one());
    tracking.finish(ticket, one())
}

/// After a cut that is released, with `TRACK` still to be sent.
fn running(tracks: u64) -> Arc<Tracking> {
    let epoch = Arc::new(Epoch::new());
    let tracking = volume_of(tracks, &epoch);
    let ticket = admitted(&tracking);
    write(&tracking, ticket);
    tracking.arm(1);
    epoch.begin(1);
    assert!(tracking.quiesced());
    tracking.release();
    tracking
}

#[test]
fn once_the_cut_is_quiet_no_write_of_the_old_epoch_comes() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let tracking = volume(&epoch);
        let writer = {
            let tracking = tracking.clone();
            thread::spawn(move || match tracking.admit(QUEUE) {
                Admission::Admitted(ticket) => {
                    write(&tracking, ticket);
                    true
                }
                Admission::Held => false,
            })
        };
        tracking.arm(1);
        epoch.begin(1);
        let frozen = tracking.quiesced().then(|| tracking.out_of_sync().is_set(TRACK));
        let let_in = writer.join().expect("no panic");
        assert!(tracking.quiesced(), "nothing is in flight");
        assert_eq!(tracking.out_of_sync().is_set(TRACK), let_in);
        if let Some(frozen) = frozen {
            assert_eq!(frozen, let_in, "OOS changed after it was said to be frozen");
        }
        assert_eq!(tracking.change_recording().count(), 0, "held writes mark nothing");
    });
}

#[test]
fn a_write_that_waited_for_one_held_by_the_cut_is_held_on_every_volume() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let volumes = [volume(&epoch), volume(&epoch)];
        let writer = {
            let volumes = volumes.clone();
            thread::spawn(move || {
                let held = |tracking: &Tracking| match tracking.admit(QUEUE) {
                    Admission::Admitted(ticket) => {
                        write(tracking, ticket);
                        false
                    }
                    Admission::Held => true,
                };
                let first = held(&volumes[0]);
                (first, held(&volumes[1]))
            })
        };
        for tracking in &volumes {
            tracking.arm(1);
        }
        epoch.begin(1);
        let (first, second) = writer.join().expect("no panic");
        assert!(!first || second, "the cut let a later write in on another volume");
    });
}

#[test]
fn what_the_drain_has_not_read_is_marked() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let tracking = volume(&epoch);
        let primary = Arc::new(AtomicU64::new(0));
        let writer = {
            let (tracking, primary) = (tracking.clone(), primary.clone());
            thread::spawn(move || {
                let ticket = admitted(&tracking);
                tracking.mark(&ticket, one());
                primary.store(1, SeqCst);
                tracking.finish(ticket, one());
            })
        };
        let mut secondary = 0;
        if tracking.take(TRACK, 1, |_| true).0.count > 0 {
            secondary = primary.load(SeqCst);
            tracking.image_read(one());
        }
        writer.join().expect("no panic");
        assert!(secondary == 1 || tracking.out_of_sync().is_set(TRACK), "a write was lost");
        assert_eq!(tracking.out_of_sync().count(), tracking.out_of_sync().count_exactly());
    });
}

#[test]
fn setters_and_a_clearer_leave_an_exact_count() {
    loom::model(|| {
        let bits = Arc::new(bitmap(2));
        let setters: Vec<_> = (0..2)
            .map(|_| {
                let bits = bits.clone();
                thread::spawn(move || bits.set(TRACK))
            })
            .collect();
        let cleared = bits.clear(TRACK);
        let set: Vec<bool> = setters.into_iter().map(|setter| setter.join().expect("no panic")).collect();
        let times = set.iter().filter(|set| **set).count();
        assert_eq!(bits.is_set(TRACK), times > usize::from(cleared));
        assert_eq!(bits.count(), bits.count_exactly());
    });
}

#[test]
fn a_search_that_finds_a_block_clean_hides_no_mark() {
    // The first track of the second block, whose summary still stands from before.
    const FAR: TrackNo = TrackNo(4096);
    loom::model(|| {
        let bits = Arc::new(bitmap(4097));
        bits.set(FAR);
        bits.clear(FAR);
        let setter = {
            let bits = bits.clone();
            thread::spawn(move || bits.set(FAR))
        };
        bits.next_set(TRACK);
        assert!(setter.join().expect("no panic"));
        assert_eq!(bits.next_set(TRACK), Some(FAR));
    });
}

/// What a write after the cut does at a track, up to its own data. Returns whether it read the old content, whether it
/// is parked, and whom it has told.
fn meet(tracking: &Tracking, primary: &AtomicU64, room: bool) -> (Option<u64>, bool, Vec<Waiters>) {
    let ticket = admitted(tracking);
    tracking.mark(&ticket, one());
    let (mut kept, mut parked, mut told) = (None, false, Vec::new());
    if tracking.may_collide(&ticket) {
        match tracking.collide(TRACK, Waiter::queue(QUEUE)) {
            Collision::None => told.push(tracking.claims().take_waiters()),
            Collision::Owned(_) if room => {
                kept = Some(primary.load(SeqCst));
                tracking.image_read(one());
                tracking.owner_handed_over();
                told.push(tracking.claims().take_waiters());
            }
            Collision::Owned(_) => {
                tracking.disown(TRACK);
                tracking.owner_handed_over();
                told.push(tracking.claims().take_waiters());
                parked = true;
            }
            Collision::Busy(_) => parked = true,
        }
    }
    if parked && !tracking.must_wait(TRACK, Waiter::queue(QUEUE)) {
        told.push(tracking.claims().take_waiters());
    }
    if !parked {
        primary.store(1, SeqCst);
    }
    tracking.finish(ticket, one());
    (kept, parked, told)
}

/// The drain meets a colliding write at one track.
fn collision(room: bool) {
    loom::model(move || {
        let tracking = running(2);
        let primary = Arc::new(AtomicU64::new(0));
        let host = {
            let (tracking, primary) = (tracking.clone(), primary.clone());
            thread::spawn(move || meet(&tracking, &primary, room))
        };
        let taken = tracking.take(TRACK, 1, |_| true).0.count > 0;
        let mut told = Vec::new();
        let mut sent = None;
        if taken {
            sent = Some(primary.load(SeqCst));
            tracking.image_read(one());
            told.push(tracking.claims().take_waiters());
        }
        let (kept, parked, told_by_host) = host.join().expect("no panic");
        told.extend(told_by_host);
        let has = |waiter| told.iter().any(|waiters: &Waiters| waiters.contains(waiter));

        assert!(kept.is_none() || sent.is_none(), "two owners of one track");
        assert!(kept != Some(1) && sent != Some(1), "the cut holds a later write");
        let marked = tracking.out_of_sync().is_set(TRACK);
        assert_eq!(marked, kept.is_none() && sent.is_none(), "the content at the cut is in one place");
        assert!(!parked || marked || has(Waiter::queue(QUEUE)), "the write waits for ever");
        assert_eq!(tracking.owned(), 0);
    });
}

#[test]
fn a_track_of_the_cut_has_exactly_one_owner() {
    collision(true);
}

#[test]
fn a_write_that_found_no_room_is_told_when_its_track_was_read() {
    collision(false);
}

#[test]
fn a_drain_that_met_a_test_of_another_track_is_told_when_it_is_over() {
    // Under one claim with `TRACK`, and not out of sync.
    const TWIN: TrackNo = TrackNo(STRIPES);
    loom::model(|| {
        let tracking = running(STRIPES + 1);
        let host = {
            let tracking = tracking.clone();
            thread::spawn(move || {
                let met = tracking.collide(TWIN, Waiter::queue(QUEUE));
                (met == Collision::None).then(|| tracking.claims().take_waiters())
            })
        };
        let taken = tracking.take(TRACK, 1, |_| true).0.count > 0;
        if taken {
            tracking.image_read(one());
        }
        let told = host.join().expect("no panic");
        assert!(taken || told.is_some_and(|told| told.contains(Waiter::DRAIN)), "the drain waits for ever");
    });
}

#[test]
fn a_drain_that_dozes_is_told_of_the_next_mark() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let tracking = volume(&epoch);
        let writer = {
            let tracking = tracking.clone();
            thread::spawn(move || {
                let ticket = admitted(&tracking);
                write(&tracking, ticket)
            })
        };
        tracking.doze();
        let sleeps = tracking.out_of_sync().count() == 0;
        let told = writer.join().expect("no panic");
        assert!(!sleeps || told, "the drain sleeps and a track is marked");
    });
}

#[test]
fn the_spare_is_not_ready_before_the_last_write_of_the_old_epoch_has_finished() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let tracking = volume(&epoch);
        let ticket = admitted(&tracking);
        tracking.mark(&ticket, one());
        tracking.arm(1);
        epoch.begin(1);
        tracking.retire(true);
        let writer = {
            let tracking = tracking.clone();
            thread::spawn(move || tracking.finish(ticket, one()))
        };
        let folded = tracking.fold();
        let told = writer.join().expect("no panic");
        assert!(folded || told, "nobody folds the rest");
        assert!(folded || tracking.fold());
        assert_eq!((tracking.change_recording().count(), tracking.unfolded()), (0, None));
        assert!(tracking.out_of_sync().is_set(TRACK));
    });
}

#[test]
fn a_drain_that_looks_during_an_abort_folds_only_afterwards() {
    loom::model(|| {
        let tracking = running(2);
        let ticket = admitted(&tracking);
        let other = TrackRange::one(TrackNo(1));
        tracking.mark(&ticket, other);
        tracking.finish(ticket, other);
        let drain = {
            let tracking = tracking.clone();
            thread::spawn(move || {
                if tracking.unfolded().is_some() {
                    assert_eq!(tracking.cut(), None, "the increment is over");
                    tracking.fold();
                }
            })
        };
        tracking.retire(true);
        drain.join().expect("no panic");
        if tracking.unfolded().is_some() {
            assert!(tracking.fold());
        }
        assert_eq!((tracking.out_of_sync().count(), tracking.change_recording().count()), (2, 0));
    });
}

#[test]
fn a_track_given_back_during_an_abort_marks_no_spare() {
    loom::model(|| {
        let tracking = running(2);
        let ticket = admitted(&tracking);
        tracking.mark(&ticket, one());
        assert_eq!(tracking.collide(TRACK, Waiter::queue(QUEUE)), Collision::Owned(1));
        let host = {
            let tracking = tracking.clone();
            thread::spawn(move || tracking.disown(TRACK))
        };
        tracking.retire(true);
        tracking.fold();
        host.join().expect("no panic");
        tracking.owner_handed_over();
        assert!(tracking.unfolded().is_none() || tracking.fold());
        assert_eq!(tracking.change_recording().count(), 0, "the next cut would begin with a mark");
        tracking.finish(ticket, one());
    });
}

// The regions of the intent (H1, H3).

const REGION: RegionRange = RegionRange { start: RegionNo(0), count: 1 };

fn regions() -> Arc<Regions> {
    let geometry = Geometry::new(2 * 4096, 4096).expect("valid");
    Arc::new(Regions::new(geometry, 2 * 4096, Words::new(1).expect("memory")))
}

#[test]
fn a_region_is_cleared_before_its_write_or_not_at_all() {
    loom::model(|| {
        let epoch = Arc::new(Epoch::new());
        let (tracking, regions) = (volume(&epoch), regions());
        let media = Arc::new(AtomicU64::new(1));
        regions.heat(RegionNo(0));
        let host = {
            let (tracking, regions, media) = (tracking.clone(), regions.clone(), media.clone());
            thread::spawn(move || {
                let hot = regions.pin(REGION).hot;
                if hot {
                    let ticket = admitted(&tracking);
                    tracking.mark(&ticket, one());
                    assert_eq!(media.load(SeqCst), 1, "data before its intent");
                    tracking.finish(ticket, one());
                }
                regions.unpin(REGION);
                hot
            })
        };
        if regions.cool(RegionNo(0)) {
            if tracking.any_marked(regions.tracks(RegionNo(0))) {
                regions.heat(RegionNo(0));
            } else {
                media.store(0, SeqCst);
            }
        }
        let wrote = host.join().expect("no panic");
        assert!(!wrote || media.load(SeqCst) == 1, "a mark in a region that was cleared");
        assert_eq!(regions.pins(RegionNo(0)), 0);
    });
}

#[test]
fn a_mark_that_an_abort_folds_is_found_at_every_instant() {
    loom::model(|| {
        let tracking = running(2);
        tracking.retire(true);
        let looker = {
            let tracking = tracking.clone();
            thread::spawn(move || tracking.any_marked(one()))
        };
        tracking.fold();
        assert!(looker.join().expect("no panic"), "the mark was in neither structure");
    });
}

#[test]
fn a_count_is_never_0_while_a_track_is_marked() {
    const OTHER: TrackNo = TrackNo(1);
    loom::model(|| {
        let bits = Arc::new(bitmap(2));
        bits.set(OTHER);
        let setter = {
            let bits = bits.clone();
            thread::spawn(move || bits.set(TRACK))
        };
        bits.clear(TRACK);
        assert!(bits.count() > 0, "one is marked all the time");
        setter.join().expect("no panic");
        assert_eq!(bits.count(), bits.count_exactly());
    });
}

#[test]
fn a_write_that_waits_for_its_intent_is_told_of_it() {
    loom::model(|| {
        let regions = regions();
        let (letter, bell) = (Arc::new(AtomicU64::new(0)), Arc::new(AtomicU64::new(0)));
        let host = {
            let (regions, letter, bell) = (regions.clone(), letter.clone(), bell.clone());
            thread::spawn(move || {
                let hot = regions.pin(REGION).hot;
                if !hot {
                    letter.store(1, SeqCst);
                    bell.store(1, SeqCst);
                }
                hot
            })
        };
        // The region becomes hot for somebody else; then the keeper looks whether there are letters, and sleeps.
        regions.heat(RegionNo(0));
        bell.swap(0, SeqCst);
        let told = letter.swap(0, SeqCst) == 1 && regions.all_hot(REGION);
        let hot = host.join().expect("no panic");
        assert!(hot || told || bell.load(SeqCst) == 1, "it waits for ever");
        assert!(!regions.cool(RegionNo(0)), "it is pinned");
    });
}
