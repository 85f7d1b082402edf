//! Every sequence of up to five events over two volumes of two tracks, each followed by letting everything finish, and
//! judged like a run of the simulation.
//!
//! Depth first; each sequence is run from the beginning. An event that can do nothing where it stands (a completion
//! with nothing under way) ends its branch: the sequence without it is another one. What lies between two events
//! (rings of doorbells, the controller's work) is done at once; requests land half when they are submitted and half
//! when they are answered, so that what is read in between is torn.

#![allow(
    clippy::cast_precision_loss,
    clippy::format_push_string,
    clippy::needless_pass_by_value,
    clippy::similar_names,
    clippy::single_match_else,
    clippy::struct_excessive_bools,
    reason = "a test program, where brevity counts for more"
)]

macro_rules! of_the_simulation {
    ($($name:ident: $path:literal,)*) => {
        $(#[path = $path]
        #[allow(dead_code, reason = "the simulation uses all of it, this only a part")]
        mod $name;)*
    };
}

of_the_simulation! {
    cache: "simulation/cache.rs",
    checker: "simulation/checker.rs",
    controller: "simulation/controller.rs",
    crash: "simulation/crash.rs",
    devices: "simulation/devices.rs",
    disk: "simulation/disk.rs",
    driver: "simulation/driver.rs",
    keeper: "simulation/keeper.rs",
    options: "simulation/options.rs",
    rng: "simulation/rng.rs",
    run: "simulation/run.rs",
    side: "simulation/side.rs",
    trace: "simulation/trace.rs",
    volume: "simulation/volume.rs",
    workload: "simulation/workload.rs",
    world: "simulation/world.rs",
}

use controller::Command;
use devices::{IoKind, Mode};
use farpoint::frontend::Op;
use farpoint::group::VolumeId;
use farpoint::increment::State;
use farpoint::uploader::{Limits, Policy};
use options::{CLASSES, Options, Rates, TRACK_SECTORS};
use std::time::Instant;
use world::{Event, World};

/// Longest sequence; one less where the code is slow, and how many sequences that are at least.
const EVENTS_MAX: usize = if cfg!(debug_assertions) { 4 } else { 5 };
const SEQUENCES_MIN: u64 = if cfg!(debug_assertions) { 10_000 } else { 150_000 };

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Happening {
    /// A write of a whole track arrives.
    Write {
        volume: usize,
        track: usize,
    },
    /// The primary answers the volume's oldest request of the host's side.
    Primary(usize),
    /// The volume's drain runs until it sleeps, or else its oldest request is answered.
    Drain(usize),
    Start,
    Run,
    Complete,
    Abort,
    /// The secondary begins to fail, or is well again.
    Fail(usize),
    /// The next timer fires.
    Timer,
}

const HAPPENINGS: [Happening; 15] = [
    Happening::Write { volume: 0, track: 0 },
    Happening::Write { volume: 0, track: 1 },
    Happening::Write { volume: 1, track: 0 },
    Happening::Write { volume: 1, track: 1 },
    Happening::Primary(0),
    Happening::Primary(1),
    Happening::Drain(0),
    Happening::Drain(1),
    Happening::Start,
    Happening::Run,
    Happening::Complete,
    Happening::Abort,
    Happening::Fail(0),
    Happening::Fail(1),
    Happening::Timer,
];

fn small() -> Options {
    let rates = Rates {
        read: 0,
        discard: 0,
        flush: 0,
        durable: 0,
        short: 0,
        again: 0,
        host_error: 0,
        secondary_error: 0,
        damage: 0,
        metadata_error: 0,
        prompt: 0,
        disturb: 0,
        faults: 0,
        policy: 0,
        aborts: 0,
    };
    Options {
        volumes: 2,
        queues: 1,
        depth: 2,
        tracks: 2,
        tail: 0,
        writers: 0,
        hot: 2,
        tracks_per_write: 1,
        images: 1,
        limits: Limits {
            window: 2,
            window_yielding: 1,
            run_tracks: 2,
            flush_bytes: 1 << 20,
            flush_ms: 1,
            unreadable_max: 64,
        },
        policy: Policy { send_first: false, collision_wait_ms: 5, bandwidth: 0 },
        run_timer_us: 20_000,
        increment_timer_us: 60_000,
        tick_us: 1,
        think_us: 0,
        speeds: [8; CLASSES],
        fine: false,
        first_copy: false,
        region_tracks: 1,
        intent: None,
        log_slots: 2,
        cold: false,
        crashes: 0,
        stops: 0,
        forgetful: false,
        manual: true,
        deaf: None,
        rounds: 1,
        round_steps: 0,
        rates,
    }
}

/// Does everything that is done at once: doorbells and the controller; and lands the first half of new requests.
fn tidy_up(world: &mut World) {
    while let Some(place) = world.ready.iter().position(|event| matches!(event, Event::Ring { .. } | Event::Controller))
    {
        world.happen(place);
    }
    for event in &mut world.ready {
        let Event::Io(io) = event else { continue };
        let half = io.goal() / 2;
        if io.done < half {
            world.volumes[io.volume].side.devices.carry_out(io, half - io.done);
            io.done = half;
        }
    }
}

fn is_of_host(kind: IoKind) -> bool {
    matches!(kind, IoKind::HostWrite { .. } | IoKind::ReadImage { .. })
}

/// Answers the volume's oldest request of the kind asked for.
fn answer_oldest(world: &mut World, volume: usize, of_host: bool) -> bool {
    let oldest = world
        .ready
        .iter()
        .position(|event| matches!(event, Event::Io(io) if io.volume == volume && is_of_host(io.kind) == of_host));
    let Some(place) = oldest else { return false };
    let Event::Io(mut io) = world.ready.remove(place) else { return false };
    if world.volumes[volume].side.devices.secondary.mode == Mode::Failing && io.kind.to_secondary() {
        io.fate = devices::Fate::Error(io.done);
    }
    world.volumes[volume].side.devices.carry_out(&io, io.goal() - io.done);
    io.done = io.goal();
    world.finish_io(io);
    true
}

/// The event happens. False: it can do nothing here.
fn happen(world: &mut World, happening: Happening) -> bool {
    let done = match happening {
        Happening::Write { volume, track } => {
            let free = world.volumes[volume].side.asked[0].iter().position(Option::is_none);
            let Some(tag) = free else { return false };
            world.writers.push(workload::Writer::default());
            let (writer, start) = (world.writers.len() - 1, track * TRACK_SECTORS);
            world.ask_for(writer, (volume, 0, tag), (start, TRACK_SECTORS), Op::Write { durable: false });
            true
        }
        Happening::Primary(volume) => answer_oldest(world, volume, true),
        Happening::Drain(volume) => {
            if let Some(place) = world.ready.iter().position(|event| *event == Event::Drain(volume)) {
                world.happen(place);
                true
            } else {
                answer_oldest(world, volume, false)
            }
        }
        Happening::Start => {
            // One alone, if the other is still in an increment that was given up.
            let free: Vec<usize> = (0..2).filter(|&volume| world.controller.is_free(volume)).collect();
            let any = !free.is_empty();
            if any {
                world.command(Command::Start(free));
            }
            any
        }
        Happening::Run => with_group(world, Command::Run),
        Happening::Complete => with_group(world, Command::Complete),
        Happening::Abort => with_group(world, Command::Abort),
        Happening::Fail(volume) => {
            let mode = match world.volumes[volume].side.devices.secondary.mode {
                Mode::Healthy => Mode::Failing,
                _ => Mode::Healthy,
            };
            world.set_secondary(volume, mode);
            true
        }
        Happening::Timer => world.leap(),
    };
    tidy_up(world);
    check_free(world);
    done
}

fn with_group(world: &mut World, command: impl FnOnce(u64) -> Command) -> bool {
    // The newest: an older one can only be on its way out.
    let Some(running) = world.controller.groups.last() else { return false };
    let before = running.group.clone();
    let number = running.number;
    world.command(command(number));
    tidy_up(world);
    // Refused: nothing has changed.
    world.controller.groups.last().is_none_or(|running| running.group != before)
}

/// A volume that is back to normal after an abort is free at once, whatever the others of its increment do.
fn check_free(world: &World) {
    for running in &world.controller.groups {
        for &volume in &running.volumes {
            let normal = running.group.state(VolumeId(volume)) == Some(State::Normal);
            assert!(!normal, "volume {volume} is normal and kept by increment {}", running.number);
        }
    }
}

/// Where sequences begin: all in sync and silent; in an increment that runs, with tracks that it still has to send; and
/// after an abort that one volume cannot finish, as an earlier write of it hangs, and the other can.
const BEGINNINGS: [&[Happening]; 3] = [
    &[],
    &[
        Happening::Write { volume: 0, track: 0 },
        Happening::Write { volume: 1, track: 1 },
        Happening::Primary(0),
        Happening::Primary(1),
        Happening::Start,
        Happening::Drain(0),
        Happening::Drain(1),
        Happening::Run,
    ],
    &[
        Happening::Write { volume: 0, track: 0 },
        Happening::Write { volume: 1, track: 1 },
        Happening::Primary(1),
        Happening::Start,
        Happening::Abort,
        Happening::Drain(0),
        Happening::Drain(1),
    ],
];

/// Runs a sequence and lets everything finish. None: its last event could do nothing.
fn try_out(beginning: &[Happening], sequence: &[usize], steps: &mut u64) -> Option<()> {
    let seed = sequence.iter().fold(7, |seed, event| seed * 31 + *event as u64);
    let mut world = World::new(small(), seed, false);
    tidy_up(&mut world);
    for &happening in beginning {
        assert!(happen(&mut world, happening), "the beginning is possible");
    }
    for &event in sequence {
        if !happen(&mut world, HAPPENINGS[event]) {
            return None;
        }
    }
    world.answer_all();
    world.settle();
    *steps += world.coverage.steps;
    let outcome = world.outcome();
    if let Some(violation) = outcome.violation {
        for line in outcome.trace {
            println!("{line}");
        }
        let events: Vec<_> = sequence.iter().map(|event| HAPPENINGS[*event]).collect();
        panic!("{violation}, after {beginning:?} and {events:?}");
    }
    Some(())
}

/// Runs every sequence that begins with `sequence`; counts them and their steps.
fn explore(beginning: &[Happening], sequence: &mut Vec<usize>, count: &mut u64, steps: &mut u64) {
    if try_out(beginning, sequence, steps).is_none() {
        return;
    }
    *count += 1;
    if sequence.len() == EVENTS_MAX {
        return;
    }
    for event in 0..HAPPENINGS.len() {
        sequence.push(event);
        explore(beginning, sequence, count, steps);
        sequence.pop();
    }
}

#[test]
fn no_sequence_of_five_events_breaks_a_promise() {
    let began = Instant::now();
    let thread = |(beginning, first): (&'static [Happening], usize)| {
        std::thread::spawn(move || {
            let (mut count, mut steps) = (0, 0);
            explore(beginning, &mut vec![first], &mut count, &mut steps);
            (count, steps)
        })
    };
    let threads: Vec<_> = BEGINNINGS
        .into_iter()
        .flat_map(|beginning| (0..HAPPENINGS.len()).map(move |first| (beginning, first)))
        .map(thread)
        .collect();
    let mut total = (0, 0);
    for thread in threads {
        let (count, steps) = thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic));
        total = (total.0 + count, total.1 + steps);
    }
    println!("{} sequences that do something, {} steps, {:.1} s", total.0, total.1, began.elapsed().as_secs_f64());
    assert!(total.0 >= SEQUENCES_MIN, "only {} sequences could be run", total.0);
}
