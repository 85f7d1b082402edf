//! A simulated volume, put together as the real one is.

use crate::checker::Stamp;
use crate::crash::{Start, renamed};
use crate::devices::Devices;
use crate::driver::Driver;
use crate::keeper::KeeperDriver;
use crate::options::Options;
use crate::rng::Rng;
use crate::side::Side;
use farpoint::intent::{self, Keeper, LogStart, Regions};
use farpoint::memory::Words;
use farpoint::metadata::layout::{Layout, REGIONS_PER_PAGE};
use farpoint::metadata::media::Hot;
use farpoint::metadata::{self, superblock::Superblock};
use farpoint::tracking::{Bitmap, Epoch, Tracking};
use farpoint::uploader::Drain;
use farpoint::volume::{Host, HostCounters};
use std::collections::VecDeque;
use std::sync::Arc;
use std::sync::atomic::AtomicBool;

/// A volume: the code under test, and its surroundings.
#[derive(Debug)]
pub struct Volume {
    pub tracking: Arc<Tracking>,
    pub send_first: Arc<AtomicBool>,
    pub hosts: Vec<Host>,
    pub drain: Drain,
    pub driver: Driver,
    pub regions: Arc<Regions>,
    pub kept: KeeperDriver,
    pub side: Side,
    /// It was paused, or will be when the controller comes to it.
    pub paused: bool,
    /// Doorbells of queues that were rung and are not heard yet.
    pub rung: Vec<bool>,
}

impl Volume {
    pub fn new(index: usize, options: &Options, epoch: &Arc<Epoch>, seed: u64, start: Option<Start>) -> Self {
        let hot = start.as_ref().map(|start| (start.recovery.hot.clone(), start.recovery.log()));
        let recovered = start.as_ref().map(|start| start.recovery.tracks.clone());
        let sides = match &start {
            Some(start) => renamed(index, &start.primary, &start.secondary),
            None => first_sides(index, options),
        };
        let devices = Devices::new(options, sides, start);
        let (geometry, tracks) = (devices.geometry, devices.geometry.tracks());
        let words = || Words::new(crate::devices::index(Bitmap::words_for(tracks))).expect("memory");
        let structures = [Bitmap::new(tracks, words()), Bitmap::new(tracks, words())];
        match recovered {
            Some(tracks) => tracks.mark(&structures[0]),
            None if options.first_copy => structures[0].set_all(),
            None => {}
        }
        let tracking = Arc::new(Tracking::new(devices.geometry, options.queues, epoch.clone(), structures));
        let send_first = Arc::new(AtomicBool::new(options.policy.send_first));
        let words = Words::new(crate::devices::index(Regions::count_of(&geometry, options.region_size())));
        let regions = Arc::new(Regions::new(geometry, options.region_size(), words.expect("memory")));
        let kept = keeper(options, &regions, hot);
        let host = |queue| {
            let counters = Arc::new(HostCounters::default());
            Host::new(queue, options.depth, tracking.clone(), regions.clone(), send_first.clone(), counters)
        };
        Self {
            hosts: (0..options.queues).map(host).collect(),
            drain: Drain::new(options.limits, options.policy, seed),
            driver: Driver::new(options.tracks, options.policy.collision_wait_ms),
            side: Side {
                volume: index,
                devices,
                now_us: 0,
                asked: vec![vec![None; usize::from(options.depth)]; options.queues],
                mailbox: VecDeque::new(),
                letters: VecDeque::new(),
                submitted: Vec::new(),
                answers: Vec::new(),
                ring_drain: true,
                ring_keeper: options.intent.is_some(),
                left_letter: false,
                ring_queues: vec![false; options.queues],
                violation: None,
                deaf: options.deaf,
            },
            paused: false,
            rung: vec![false; options.queues],
            tracking,
            regions,
            kept,
            send_first,
        }
    }
}

/// What the two sides hold at the very beginning.
fn first_sides(index: usize, options: &Options) -> (Vec<Stamp>, Vec<Stamp>) {
    let primary: Vec<Stamp> = (0..options.sectors()).map(|sector| Stamp::new(0, index, sector, false)).collect();
    let secondary = if options.first_copy { vec![Stamp::BLANK; primary.len()] } else { primary.clone() };
    (primary, secondary)
}

/// A volume that was just created, or one that was in sync when it went down.
pub fn first_start(index: usize, options: &Options, rng: &mut Rng) -> Start {
    let (primary, secondary) = first_sides(index, options);
    let geometry = options.geometry();
    let side = |what: &str, size| metadata::Side { identity: format!("{what} {index}"), size };
    let sides = [side("primary", geometry.size()), side("secondary", geometry.size()), side("metadata", 1 << 20)];
    let id = [u8::try_from(index + 1).expect("small"); 16];
    let region_size = u32::try_from(options.region_size()).expect("small");
    let pages = Layout::new(&geometry, region_size.into()).intent_pages;
    let layout = Layout::with_slots(&geometry, pages, options.log_slots);
    let superblock = Superblock::with_layout(id, "simulated", sides, &geometry, region_size, layout);
    Start::first(primary, secondary, superblock, options.cold, Rng::new(rng.next()))
}

/// Without intent every region is hot for ever, and the keeper sleeps.
fn keeper(options: &Options, regions: &Regions, found: Option<(Hot, LogStart)>) -> KeeperDriver {
    let asleep = intent::Limits { hot_max: u64::MAX, idle_ms: u64::MAX, ahead: 0, batch: 1, suspend: false };
    let all = || (std::iter::once(0..regions.count()).collect(), LogStart::empty(2));
    let (hot, log): (Vec<_>, _) = found.map_or_else(all, |(hot, log)| (hot.runs().collect(), log));
    KeeperDriver::new(Keeper::new(options.intent.unwrap_or(asleep), regions, REGIONS_PER_PAGE, hot, log))
}
