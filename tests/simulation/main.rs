//! Simulation of the code that decides: seeded, single-threaded, with disks that tear, hang, fail and forget, and a
//! judge that knows nothing of the code.
//!
//! `SEED=n` runs one seed and tells all of it; `SEEDS=n` that many fresh ones; `SECONDS_MAX=n` fresh ones for so long.
//! Always in a release build, where a million steps take a few seconds: `cargo test --release --features bugs`.

#![allow(
    clippy::cast_precision_loss,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::similar_names,
    clippy::single_match_else,
    clippy::struct_excessive_bools,
    reason = "a test program, where brevity counts for more"
)]

mod cache;
mod checker;
mod controller;
mod crash;
mod devices;
mod disk;
mod driver;
mod keeper;
mod options;
mod rng;
mod run;
mod side;
mod trace;
mod volume;
mod workload;
mod world;

use farpoint::bugs::{Bug, plant};
use options::{Deaf, Options};
use run::{Outcome, options, run};
use std::collections::BTreeMap;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};
use world::Coverage;

/// Seeds that every run of the tests goes through, and fresh ones besides.
const FIXED_SEEDS: u64 = 4000;
const FRESH_SEEDS: u64 = 2000;
/// Runs that are cut off at every step, and the last of these.
const CRASH_SEEDS: u64 = 12;
const CRASH_STEPS: u64 = 300;
/// Each known bug has to be found within so many seeds.
const BUG_SEEDS: u64 = 2000;

/// Runs a seed; a panic of the code under test is told with its seed.
fn attempt(seed: u64) -> Outcome {
    catch_unwind(AssertUnwindSafe(|| run(seed, options(seed), false))).unwrap_or_else(|panic| {
        println!("seed {seed} panicked; to repeat: scripts/sim {seed}");
        std::panic::resume_unwind(panic)
    })
}

fn report(seed: u64, outcome: &Outcome) {
    let Some(violation) = &outcome.violation else { return };
    println!("seed {seed}: {violation}\n{:#?}", outcome.options);
    for line in &outcome.trace {
        println!("{line}");
    }
    println!("seed {seed}: {violation}\nto repeat: scripts/sim {seed}");
}

/// Runs seeds until they or the time are used up. Tells the first that breaks a promise in full, and of each promise
/// that was broken how often and by which seed first.
fn run_all(seeds: impl Iterator<Item = u64>, time: Option<Duration>) -> Coverage {
    let began = Instant::now();
    let mut coverage = Coverage::default();
    let mut count = 0_u64;
    let mut broken: BTreeMap<&'static str, (u64, u64)> = BTreeMap::new();
    for seed in seeds {
        if time.is_some_and(|time| began.elapsed() >= time) {
            break;
        }
        let outcome = attempt(seed);
        if broken.is_empty() {
            report(seed, &outcome);
        }
        if let Some(violation) = &outcome.violation {
            broken.entry(violation.promise).or_insert((0, seed)).0 += 1;
        }
        coverage.add(&outcome.coverage);
        count += 1;
    }
    let (seconds, steps) = (began.elapsed().as_secs_f64(), coverage.steps);
    println!(
        "{count} seeds in {seconds:.1} s, {:.2} million steps a second: {coverage:?}",
        steps as f64 / seconds / 1e6
    );
    for (promise, (count, seed)) in &broken {
        println!("{promise} was broken by {count} seeds, first by {seed}; to repeat: scripts/sim {seed}");
    }
    assert!(broken.is_empty(), "promises were broken: {:?}", broken.keys());
    coverage
}

fn number(variable: &str) -> Option<u64> {
    std::env::var(variable).ok().and_then(|value| value.parse().ok())
}

#[test]
fn fixed_seeds_keep_every_promise() {
    if let Some(seed) = number("SEED") {
        let outcome = run(seed, options(seed), true);
        report(seed, &outcome);
        assert!(outcome.violation.is_none(), "seed {seed} broke a promise");
        return;
    }
    let coverage = run_all(0..FIXED_SEEDS, None);
    assert!(coverage.points > FIXED_SEEDS && coverage.aborted > FIXED_SEEDS && coverage.images > FIXED_SEEDS);
    assert!(coverage.crashes > FIXED_SEEDS && coverage.gaps > FIXED_SEEDS / 400);
}

#[test]
fn fresh_seeds_keep_every_promise() {
    if number("SEED").is_some() {
        return;
    }
    let now = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |now| now.as_micros());
    let first = number("FIRST").unwrap_or(u64::try_from(now % (1 << 48)).unwrap_or(0));
    let time = number("SECONDS_MAX").map(Duration::from_secs);
    let count = number("SEEDS").unwrap_or(if time.is_some() { u64::MAX / 2 } else { FRESH_SEEDS });
    println!("seeds from {first}, at most {count}");
    run_all(first..first.saturating_add(count), time);
}

/// The make-up of a seed's run, with more of what a bug needs that shows too rarely: failures of sends and reads while
/// a grace is under way, and a crash soon after; or many increments of several volumes, and none cut short.
fn options_for(bug: Bug, seed: u64) -> Options {
    let mut options = options(seed);
    if bug == Bug::ClearedAfterFailure {
        (options.rates.damage, options.rates.secondary_error, options.crashes) = (20, 20, 6);
        options.intent = options.intent.map(|intent| farpoint::intent::Limits { hot_max: 0, idle_ms: 1, ..intent });
        options.limits.flush_ms = 1;
    }
    if let Bug::RecordLetGoEarly | Bug::RecordGapUntold = bug {
        // Metadata that takes long, crashes, and a log that is soon full or one in which many records are under way.
        let slots = if bug == Bug::RecordLetGoEarly { 3 } else { 8 };
        (options.crashes, options.cold, options.log_slots, options.region_tracks) = (6, true, slots, 1);
        (options.speeds[8], options.rates.metadata_error, options.rounds, options.round_steps) = (1, 0, 30, 300);
        (options.tracks, options.hot, options.depth, options.writers) = (24, 24, 8, 12);
    }
    if bug == Bug::EarlyRelease {
        (options.crashes, options.stops, options.cold) = (0, 0, false);
        (options.volumes, options.rates.disturb, options.rates.metadata_error) = (3, 10, 0);
    }
    options
}

/// The bug has to break one of these promises; what other checks it trips before does not count.
fn must_be_found(bug: Bug, promises: &[&str]) {
    plant(Some(bug));
    let (mut steps, mut panics) = (0, 0);
    for seed in 0..BUG_SEEDS {
        let Ok(outcome) = catch_unwind(AssertUnwindSafe(|| run(seed, options_for(bug, seed), false))) else {
            panics += 1;
            continue;
        };
        steps += outcome.coverage.steps;
        if let Some(violation) = outcome.violation.filter(|violation| promises.contains(&violation.promise)) {
            println!("{bug:?}: found by seed {seed}, after {steps} steps: {violation}");
            return;
        }
    }
    panic!("{bug:?} was not found by {BUG_SEEDS} seeds, {steps} steps, {panics} panics");
}

/// Without this wake-up somebody waits for ever: that has to be noticed, or lost wake-ups of the code would not be.
fn loss_must_be_found(deaf: Deaf) {
    for seed in 0..BUG_SEEDS {
        let outcome = run(seed, Options { deaf: Some(deaf), ..options(seed) }, false);
        if let Some(violation) = outcome.violation {
            println!("a lost wake-up ({deaf:?}): found by seed {seed}: {violation}");
            return;
        }
    }
    panic!("nobody missed the wake-up {deaf:?} in {BUG_SEEDS} seeds");
}

#[test]
fn a_finished_write_that_wakes_nobody_is_found() {
    loss_must_be_found(Deaf::Finish);
}

#[test]
fn a_letter_that_nobody_hears_of_is_found() {
    loss_must_be_found(Deaf::Letter);
}

#[test]
fn a_keeper_that_tells_nobody_is_found() {
    loss_must_be_found(Deaf::Intent);
}

#[test]
fn work_that_a_queue_leaves_to_a_thread_asleep_is_found() {
    loss_must_be_found(Deaf::Work);
}

#[test]
fn a_number_used_twice_is_found() {
    let found = (0..BUG_SEEDS).find_map(|seed| {
        let outcome = run(seed, Options { forgetful: true, ..options(seed) }, false);
        outcome.violation.filter(|violation| violation.promise == "numbers")
    });
    println!("{}", found.expect("no number was used twice"));
}

/// Short runs, each cut off at every one of its steps.
#[test]
fn a_crash_at_every_step_loses_nothing() {
    for seed in 0..CRASH_SEEDS {
        for step in 1..CRASH_STEPS {
            let outcome = run::run_to(seed, options(seed), step);
            report(seed, &outcome);
            assert!(outcome.violation.is_none(), "seed {seed}, cut off at step {step}");
        }
    }
}

#[test]
fn a_claim_let_go_in_silence_is_found() {
    loss_must_be_found(Deaf::Claim);
}

macro_rules! bugs_are_found {
    ($($name:ident: $bug:ident breaks $promises:expr,)*) => {
        $(#[test]
        fn $name() {
            must_be_found(Bug::$bug, &$promises);
        })*

        #[test]
        fn every_known_bug_has_its_test() {
            // Without an arm for anything else: a bug that is added must be added below.
            let test = |bug: Bug| match bug { $(Bug::$bug => stringify!($name),)* };
            assert_eq!(test(Bug::NoSecondMark), "a_missing_second_mark_is_found");
        }
    };
}

bugs_are_found! {
    a_mark_cleared_after_the_read_is_found: ClearAfterRead breaks ["P2", "P3", "P6"],
    a_missing_second_mark_is_found: NoSecondMark breaks ["P2", "P3", "P6"],
    a_read_that_is_no_collision_is_found: ReadingIsNoCollision breaks ["P2"],
    a_cut_that_does_not_wait_is_found: CutWithoutWaiting breaks ["P2"],
    an_early_release_is_found: EarlyRelease breaks ["P2"],
    drained_with_tracks_in_transit_is_found: DrainedInTransit breaks ["P2", "P3", "P4"],
    a_recording_dropped_at_abort_is_found: RecordingDropped breaks ["P6", "in sync"],
    an_image_freed_early_is_found: ImageFreedEarly breaks ["P2", "P3"],
    an_ignored_failure_of_a_flush_is_found: FlushFailureIgnored breaks ["P3", "P6", "in sync"],
    a_second_mark_that_moves_is_found: SecondMarkMoves breaks ["P3"],
    a_send_repeated_from_the_primary_is_found: ResendFromPrimary breaks ["P2"],
    a_track_sent_twice_at_once_is_found: SentTwiceAtOnce breaks ["H14"],
    an_image_given_up_too_soon_is_found: ImageReadOnce breaks ["kept"],
    a_late_want_that_counts_is_found: LateWantCounts breaks ["kept"],
    damage_that_fails_the_link_is_found: DamageFailsLink breaks ["H35"],
    data_before_its_intent_is_found: DataBeforeIntent breaks ["P1"],
    a_region_cleared_while_pinned_is_found: ClearedWhilePinned breaks ["P1"],
    a_region_cleared_before_the_flush_is_found: ClearedBeforeFlush breaks ["P1"],
    a_region_cleared_after_a_failure_is_found: ClearedAfterFailure breaks ["P1"],
    a_primary_that_was_not_flushed_is_found: PrimaryNotFlushed breaks ["P1"],
    a_forgotten_error_of_the_primary_is_found: PrimaryErrorForgotten breaks ["P1"],
    a_page_write_skipped_is_found: PageWriteSkipped breaks ["P1"],
    two_writes_of_a_page_are_found: TwoWritesOfAPage breaks ["H4"],
    a_record_written_over_is_found: RecordWrittenOver breaks ["P7"],
    a_record_let_go_early_is_found: RecordLetGoEarly breaks ["P1"],
    a_record_that_ends_others_is_found: RecordEndsOthers breaks ["P1"],
    a_record_with_an_untold_gap_is_found: RecordGapUntold breaks ["P7"],
    a_forgotten_log_is_found: LogForgotten breaks ["P1"],
    a_log_that_begins_anew_too_soon_is_found: LogResetFirst breaks ["P1"],
    pages_of_a_killed_daemon_that_nobody_flushed_are_found: CacheTakenForMedia breaks ["P1"],
    hot_regions_forgotten_are_found: HotForgotten breaks ["P1"],
    a_damaged_page_read_as_cold_is_found: DamagedPageIsCold breaks ["P1"],
    clean_before_the_tracks_is_found: CleanBeforeTracks breaks ["P1", "P7"],
}
