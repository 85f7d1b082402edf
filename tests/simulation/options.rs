//! What a run is made of, drawn from the seed: sizes, speeds, rates of faults. Each run has its own mixture (swarm), so
//! that rare combinations meet, and so that a fault which hides another is absent from many runs.

use crate::rng::Rng;
use farpoint::geometry::Geometry;
use farpoint::intent;
use farpoint::uploader::{Limits, Policy};

/// Sectors of 512 bytes in a track of 4096, the smallest that the geometry allows.
pub const TRACK_SECTORS: usize = 8;
pub const SECTOR: u64 = 512;
/// Kinds of event whose speeds differ from run to run.
pub const CLASSES: usize = 9;

/// Shares in 256 of what the host asks for, and of what goes wrong.
#[derive(Debug, Clone)]
pub struct Rates {
    pub read: u64,
    pub discard: u64,
    pub flush: u64,
    pub durable: u64,
    pub short: u64,
    pub again: u64,
    pub host_error: u64,
    pub secondary_error: u64,
    pub damage: u64,
    /// Share in 2048.
    pub metadata_error: u64,
    /// Share of drained increments that are completed at once, of reached ones that are run at once.
    pub prompt: u64,
    /// One disturbance in so many steps; 0 for none.
    pub disturb: u64,
    /// Which disturbances: shares of faults, of pauses and of changes of policy; the rest is increments.
    pub faults: u64,
    pub policy: u64,
    pub aborts: u64,
}

/// A kind of wake-up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Deaf {
    /// A finished write's to the drain.
    Finish,
    /// That of a claim let go.
    Claim,
    /// A write's to the keeper of the intent.
    Letter,
    /// The keeper's to the writes that waited.
    Intent,
    /// A queue's to the keeper's thread, when it has left work for it.
    Work,
}

/// The make-up of one run.
#[derive(Debug, Clone)]
pub struct Options {
    pub volumes: usize,
    pub queues: usize,
    pub depth: u16,
    pub tracks: usize,
    /// Sectors that the last track lacks.
    pub tail: usize,
    pub writers: usize,
    /// Tracks that most writes go to.
    pub hot: usize,
    pub tracks_per_write: usize,
    pub images: usize,
    pub limits: Limits,
    pub policy: Policy,
    pub run_timer_us: u64,
    pub increment_timer_us: u64,
    /// Longest simulated time that a step takes.
    pub tick_us: u64,
    /// Longest time that a writer thinks; 0 for never.
    pub think_us: u64,
    /// In 8ths, how fast events of each class are.
    pub speeds: [u64; CLASSES],
    /// Others run between any two calls of the drain, not only when it sleeps.
    pub fine: bool,
    /// The secondary is blank at first and everything is marked.
    pub first_copy: bool,
    /// Tracks in a region, and how the intent is kept; without, every region is hot for ever.
    pub region_tracks: u64,
    pub intent: Option<intent::Limits>,
    /// Records that the log of the intent has room for.
    pub log_slots: u32,
    /// At first no region is hot.
    pub cold: bool,
    /// Shares in 8 of rounds that end in a crash, and of others that are followed by a clean stop.
    pub crashes: u64,
    pub stops: u64,
    /// Numbers of increments are not stored before the cut, to prove that this is noticed.
    pub forgetful: bool,
    /// Reached and drained groups wait for a command, instead of getting one by themselves.
    pub manual: bool,
    /// A wake-up that never reaches anyone, to prove that the loss of one is noticed.
    pub deaf: Option<Deaf>,
    pub rounds: usize,
    pub round_steps: u64,
    pub rates: Rates,
}

impl Options {
    pub fn draw(rng: &mut Rng) -> Self {
        let tracks = rng.pick(&[2, 4, 6, 12, 24]);
        let queues = rng.pick(&[1, 1, 2]);
        let volumes = rng.pick(&[1, 2, 2, 3]);
        Self {
            volumes,
            queues,
            depth: rng.pick(&[1, 2, 4, 8]),
            tracks,
            tail: if rng.chance(1, 4) { rng.below(TRACK_SECTORS) } else { 0 },
            writers: rng.pick(&[1, 2, 4, 8, 12]),
            hot: 1 + rng.below(tracks),
            tracks_per_write: rng.pick(&[1, 2, 2, 4]),
            images: rng.below(4),
            limits: Self::draw_limits(rng),
            policy: Self::draw_policy(rng),
            run_timer_us: rng.pick(&[5_000, 20_000, 50_000]),
            increment_timer_us: rng.pick(&[30_000, 500_000, 20_000_000, 20_000_000]),
            tick_us: rng.pick(&[1, 10, 50, 200]),
            think_us: rng.pick(&[0, 0, 500, 5_000]),
            speeds: std::array::from_fn(|_| rng.pick(&[1, 2, 4, 8, 8, 8])),
            fine: rng.chance(1, 2),
            first_copy: rng.chance(1, 3),
            region_tracks: rng.pick(&[1, 2, 4]),
            intent: Some(Self::draw_intent(rng)),
            log_slots: rng.pick(&[2, 3, 4, 8, 16]),
            cold: rng.chance(1, 2),
            crashes: rng.pick(&[0, 0, 2, 6]),
            stops: rng.pick(&[0, 0, 2, 6]),
            forgetful: false,
            manual: false,
            deaf: None,
            rounds: 4,
            round_steps: rng.pick(&[500, 1500, 4000]),
            rates: Self::draw_rates(rng),
        }
    }

    pub fn sectors(&self) -> usize {
        self.tracks * TRACK_SECTORS - self.tail
    }

    pub fn geometry(&self) -> Geometry {
        Geometry::new(self.sectors() as u64 * SECTOR, TRACK_SECTORS as u64 * SECTOR).expect("valid")
    }

    /// In bytes.
    pub fn region_size(&self) -> u64 {
        self.region_tracks * TRACK_SECTORS as u64 * SECTOR
    }

    fn draw_intent(rng: &mut Rng) -> intent::Limits {
        intent::Limits {
            hot_max: rng.pick(&[0, 1, 2, 100]),
            idle_ms: rng.pick(&[1, 2, 5, 50]),
            ahead: rng.pick(&[0, 0, 2, 4]),
            batch: rng.pick(&[1, 2, 100]),
            suspend: rng.chance(1, 2),
        }
    }

    fn draw_limits(rng: &mut Rng) -> Limits {
        let window = rng.pick(&[1, 2, 4, 8]);
        Limits {
            window,
            window_yielding: 1 + rng.below(window),
            run_tracks: rng.pick(&[1, 2, 4, 8]),
            flush_bytes: rng.pick(&[4096, 1 << 15, 1 << 20]),
            flush_ms: rng.pick(&[1, 5, 20]),
            unreadable_max: rng.pick(&[1, 2, 8, 64]),
        }
    }

    pub fn draw_policy(rng: &mut Rng) -> Policy {
        Policy {
            send_first: rng.chance(1, 4),
            collision_wait_ms: rng.pick(&[5, 20, 100]),
            bandwidth: rng.pick(&[0, 0, 0, 1 << 20, 64 << 20]),
        }
    }

    fn draw_rates(rng: &mut Rng) -> Rates {
        let quiet = rng.chance(1, 4);
        let mut rare = |most: u64| if quiet || rng.chance(1, 2) { 0 } else { rng.between(1, most) };
        let (short, again, host_error, secondary_error) = (rare(30), rare(30), rare(8), rare(20));
        let (damage, faults, policy) = (rare(2), rare(160), rare(40));
        let metadata_error = if rng.chance(1, 8) { rng.between(1, 40) } else { 0 };
        Rates {
            read: rng.pick(&[0, 20, 60]),
            discard: rng.pick(&[0, 10, 60]),
            flush: rng.pick(&[0, 10, 30]),
            durable: rng.pick(&[0, 20, 80]),
            short,
            again,
            host_error,
            secondary_error,
            damage,
            metadata_error,
            prompt: rng.pick(&[128, 220, 250]),
            disturb: rng.pick(&[10, 30, 100]),
            faults,
            policy,
            aborts: rng.pick(&[0, 10, 40]),
        }
    }
}
