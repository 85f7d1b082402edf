//! One running volume: joins the device, the tracking, the drain and the keeper of the intent, and is what the
//! controller commands.
//!
//! It decides nothing about increments: it carries out what the increment machine says ([`Volume::arm`],
//! [`Volume::release`], [`Volume::retire`]) and tells it what the drain reports.

mod desk;
mod host;
mod keeper;
#[cfg(test)]
mod told;

pub use desk::Intent;
pub use host::{Host, HostCounters};

use crate::doorbell::Doorbell;
use crate::frontend::leftovers::{Leftover, Owner};
use crate::frontend::{DeviceError, IntentDesk, Shape, Shared, UblkDevice};
use crate::geometry::Geometry;
use crate::intent::{self, Regions};
use crate::memory::{MemoryError, Words};
use crate::metadata::Tracks;
use crate::secondary::Secondary;
use crate::storage::{Device, process};
use crate::tracking::{Bitmap, Epoch, Tracking};
use crate::uploader::{Drain, Figures, Images, Limits, Mailbox, Message, Parts, Policy, Report, Uploader};
use keeper::{Kept, Mail};
use std::hash::{DefaultHasher, Hash, Hasher};
use std::io;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering::Relaxed};
use std::sync::{Arc, Mutex, PoisonError, mpsc};
use std::thread::{self, JoinHandle};
use std::time::Instant;

/// Largest request to the secondary, in bytes.
const RUN_BYTES: u64 = 1 << 20;
/// The secondary is flushed after this much, in bytes, or this long, in milliseconds.
const FLUSH_BYTES: u64 = 256 << 20;
const FLUSH_MS: u64 = 500;
/// Most tracks that are remembered because they could not be read.
const UNREADABLE_MAX: usize = 1 << 16;

/// How a volume is to run.
#[derive(Debug, Clone)]
pub struct Spec {
    pub name: String,
    pub track_size: u64,
    pub queues: u16,
    pub depth: u16,
    /// What the device is to say of its volume.
    pub owner: Owner,
    /// The volume's device of this number has outlived its daemon and is taken back, with its queues and depth.
    pub waiting: Option<u32>,
    /// Memory for before-images, in bytes.
    pub image_bytes: u64,
    /// Most requests to the secondary at a time.
    pub window: usize,
    /// Every content gets a checksum on its way, not only those that are kept.
    pub checksum_all: bool,
    pub policy: Policy,
}

impl Spec {
    /// The volume has a device already, which cannot be given other queues.
    pub fn take_back(&mut self, device: &Leftover) {
        (self.queues, self.depth, self.waiting) = (device.queues, device.depth, Some(device.id));
    }
}

/// Tracks out of sync at the start.
#[derive(Debug)]
pub enum Marks {
    All,
    These(Tracks),
}

/// Why a volume could not run.
#[derive(Debug, thiserror::Error)]
pub enum VolumeError {
    #[error("{0}")]
    Geometry(#[from] crate::geometry::GeometryError),
    #[error("{0}")]
    Memory(#[from] MemoryError),
    #[error("cannot start the metadata thread: {0}; see whether memory, files or threads have run out")]
    Keeper(io::Error),
    #[error("a flush of the primary failed while it was served; check it before it is used again")]
    Doubt,
    #[error("the metadata could not be written, so that the next start has to take the volume as unclean")]
    Metadata,
    #[error(
        "the metadata does not answer; see to its disk and the kernel's log (dmesg); it stays locked until it answers, \
         and the next start has to take the volume as unclean"
    )]
    MetadataStalled,
    #[error("cannot start the drain: {0}; see whether memory, files or threads have run out")]
    Drain(io::Error),
    #[error("the drain has ended by itself: {0}")]
    Ended(io::Error),
    #[error("the primary could not be flushed: {0}; check it before it is used again")]
    Flush(io::Error),
    #[error("{0}")]
    Device(#[from] DeviceError),
}

impl VolumeError {
    /// Whether a device may have been there, and been written to, before it went wrong.
    pub fn may_have_served(&self) -> bool {
        match self {
            Self::Geometry(_) | Self::Memory(_) | Self::Drain(_) | Self::Keeper(_) => false,
            Self::Device(error) => error.may_have_served(),
            Self::Ended(_) | Self::Flush(_) | Self::Metadata | Self::MetadataStalled | Self::Doubt => true,
        }
    }
}

/// A volume whose device exists.
#[derive(Debug)]
pub struct Volume {
    tracking: Arc<Tracking>,
    primary: Arc<Device>,
    device: UblkDevice,
    shared: Arc<Shared>,
    mailbox: Arc<Mailbox>,
    figures: Arc<Mutex<Figures>>,
    counters: Vec<Arc<HostCounters>>,
    send_first: Arc<AtomicBool>,
    drain: DrainThread,
    lock_warning: Option<String>,
    kept: Kept,
}

impl Volume {
    /// Makes the device over `primary` and starts draining to `secondary`. Blocks; not for the control thread.
    ///
    /// Without an `intent` none is kept: an unclean stop means that everything is copied.
    #[expect(clippy::too_many_arguments, reason = "what a volume is made of; each has a type of its own")]
    pub fn up(
        spec: &Spec,
        primary: Arc<Device>,
        secondary: Arc<Device>,
        marks: &Marks,
        intent: Option<Intent<'_>>,
        epoch: Arc<Epoch>,
        began: Instant,
        report: impl Fn(Report) + Send + 'static,
    ) -> Result<Self, VolumeError> {
        let geometry = Geometry::new(primary.size(), spec.track_size)?;
        let (tracking, lock_warning) = tracking(spec, &geometry, epoch, marks)?;
        let mail = mail(spec, began)?;
        // The keeper first: from the moment there is a device its writes are looked after.
        let kept = Kept::start(&spec.name, intent, &tracking, mail.clone())?;
        let shared = shared(spec, &primary, mail, kept.desk())?;
        let mailbox = shared.drain.clone();
        let counters: Vec<_> = (0..spec.queues).map(|_| Arc::new(HostCounters::default())).collect();
        let send_first = Arc::new(AtomicBool::new(spec.policy.send_first));

        let figures = Arc::new(Mutex::new(Figures::default()));
        let (to_wake, keeper) = (shared.clone(), shared.keeper.clone());
        let doubted = kept.regions.clone();
        let (drain, serve) = start_drain(
            spec,
            Parts {
                tracking: tracking.clone(),
                primary: primary.clone(),
                secondary: Secondary::new(&secondary, geometry.size()),
                secondary_device: secondary,
                images: shared.images.clone(),
                mailbox: mailbox.clone(),
                drain: Drain::new(limits(spec), spec.policy, seed(&spec.name)),
                began,
                wake: Box::new(move |waiters| to_wake.wake_queues(waiters)),
                report: Box::new(report),
                primary_failed: Box::new(move || doubted.doubt_primary()),
                graced: Box::new(move |id, durable| keeper.tell(intent::Message::Graced { id, durable })),
                figures: figures.clone(),
                checksum_all: spec.checksum_all,
            },
        )?;
        match Self::device(spec, &tracking, &kept, primary.clone(), &shared, &counters, &send_first) {
            Ok(device) => {
                let _ = serve.send(());
                populate(&spec.name, tracking.clone(), kept.regions.clone());
                Ok(Self {
                    tracking,
                    primary,
                    device,
                    shared,
                    mailbox,
                    figures,
                    counters,
                    send_first,
                    drain,
                    lock_warning,
                    kept,
                })
            }
            Err(error) => {
                drop(serve);
                // When both have ended no region is cleared any more.
                let _ = (drain.end(), kept.stop());
                Err(error.into())
            }
        }
    }

    fn device(
        spec: &Spec,
        tracking: &Arc<Tracking>,
        kept: &Kept,
        primary: Arc<Device>,
        shared: &Arc<Shared>,
        counters: &[Arc<HostCounters>],
        send_first: &Arc<AtomicBool>,
    ) -> Result<UblkDevice, DeviceError> {
        let (tracking, counters, send_first) = (tracking.clone(), counters.to_vec(), send_first.clone());
        let (depth, regions) = (spec.depth, kept.regions.clone());
        let handler = move |queue: usize| {
            let (tracking, regions, send_first) = (tracking.clone(), regions.clone(), send_first.clone());
            Host::new(queue, depth, tracking, regions, send_first, counters[queue].clone())
        };
        let shape =
            Shape { size: primary.size(), queues: spec.queues, depth, owner: spec.owner, waiting: spec.waiting };
        UblkDevice::start(&spec.name, shape, primary, shared.clone(), handler)
    }

    /// Stops the device and then the drain, and says which tracks are out of sync. Blocks; not for the control thread.
    /// `keep_device`: the device stays for the next daemon; this one has to end.
    ///
    /// The volume must not be holding: held writes keep a device from stopping.
    pub fn down(self, keep_device: bool) -> Result<Tracks, VolumeError> {
        let (kept, device) = (self.kept, self.device);
        // Without its device nobody's write need be refused because metadata hangs: it waits, as all of them do.
        let stopped = if keep_device { device.hand_over() } else { kept.while_attended(move || device.stop()) };
        self.mailbox.tell(Message::Stop);
        self.drain.end().map_err(VolumeError::Ended)?;
        let kept = kept.stop();
        stopped?;
        // What the secondary has, it has durably. Were the primary's cache lost after a clean stop, nobody would know.
        self.primary.flush().map_err(VolumeError::Flush)?;
        kept?;
        let mut tracks = Tracks::of(self.tracking.out_of_sync());
        tracks.add(self.tracking.change_recording());
        Ok(tracks)
    }

    pub fn tracking(&self) -> &Tracking {
        &self.tracking
    }

    pub fn device_path(&self) -> String {
        self.device.path()
    }

    pub fn device_id(&self) -> u32 {
        self.device.id()
    }

    /// Makes the volume part of the cut that the epoch `cut` begins.
    pub fn arm(&self, cut: u64) {
        self.tracking.arm(cut);
    }

    /// The epoch has begun: the drain has to notice even if no write tells it.
    pub fn cut(&self) {
        self.mailbox.tell(Message::Look);
    }

    /// Lets the held writes go.
    pub fn release(&self) {
        self.tracking.release();
        self.shared.ring_all();
    }

    /// Ends the volume's part in the increment, whatever state it is in.
    pub fn retire(&self, aborted: bool) {
        self.tracking.retire(aborted);
        self.shared.ring_all();
        self.mailbox.tell(Message::Look);
    }

    pub fn pause(&self, paused: bool) {
        self.mailbox.tell(Message::Pause(paused));
    }

    pub fn set_policy(&self, policy: Policy) {
        self.send_first.store(policy.send_first, Relaxed);
        self.mailbox.tell(Message::Policy(policy));
        // Writes that wait under the old policy look again.
        self.shared.ring_all();
    }

    /// What the drain last said of itself.
    pub fn figures(&self) -> Figures {
        *self.figures.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// What the keeper of the intent last said of itself.
    pub fn intent(&self) -> intent::Figures {
        self.kept.figures()
    }

    /// Of each queue.
    pub fn counters(&self) -> &[Arc<HostCounters>] {
        &self.counters
    }

    /// What to tell the administrator if its memory could not be locked.
    pub fn lock_warning(&self) -> Option<&str> {
        self.lock_warning.as_deref().or_else(|| self.shared.images.lock_warning())
    }

    /// Before-images in use, and room for them.
    pub fn images(&self) -> (usize, usize) {
        (self.shared.images.used(), self.shared.images.count())
    }

    /// What of it has ended although nobody stopped it; it can then only be taken down.
    pub fn broken(&self) -> Option<&'static str> {
        if self.drain.thread.is_finished() {
            Some("its drain has ended by itself")
        } else if self.device.has_ended() {
            Some("its device was stopped or removed from outside, or a queue of it has failed")
        } else {
            None
        }
    }
}

/// The drain's thread. It begins when it is told that the device is served: who waits for the device does not wait for
/// the drain's requests. Without a word it ends.
fn start_drain(spec: &Spec, parts: Parts) -> Result<(DrainThread, mpsc::SyncSender<()>), VolumeError> {
    let uploader = Uploader::new(parts, spec.window, usize::try_from(run_bytes(spec)).unwrap_or(usize::MAX));
    let uploader = uploader.map_err(VolumeError::Drain)?;
    let (serve, served) = mpsc::sync_channel(1);
    let (done, result) = mpsc::channel();
    let run = move || {
        let result = if served.recv().is_ok() {
            uploader.run()
        } else {
            drop(uploader);
            Ok(())
        };
        let _ = done.send(result);
    };
    let thread = thread::Builder::new().name(format!("{}-drain", spec.name)).spawn(run);
    Ok((DrainThread { thread: thread.map_err(VolumeError::Drain)?, result }, serve))
}

/// What is waited for is what the thread has to say, never its end: the kernel keeps a thread for which a worker of its
/// makes zeroes or flushes until that is answered, and the secondary may hang (H21).
#[derive(Debug)]
struct DrainThread {
    thread: JoinHandle<()>,
    result: mpsc::Receiver<io::Result<()>>,
}

impl DrainThread {
    /// Waits for what came of it, once it has been told to stop.
    fn end(&self) -> io::Result<()> {
        self.result.recv().unwrap_or_else(|_| Err(io::Error::other("its thread has panicked")))
    }
}

/// Before-images that a volume has memory for.
fn image_count(spec: &Spec) -> usize {
    usize::try_from(spec.image_bytes / spec.track_size).unwrap_or(0)
}

/// Mailboxes and bells of the volume's threads.
fn mail(spec: &Spec, began: Instant) -> Result<Mail, VolumeError> {
    let tags = usize::from(spec.depth) * usize::from(spec.queues);
    let failed = |error: nix::Error| VolumeError::Drain(error.into());
    Ok(Mail {
        drain: Arc::new(Mailbox::new(image_count(spec) + tags + 64).map_err(failed)?),
        keeper: Arc::new(intent::Mailbox::new(tags + 64).map_err(failed)?),
        bells: (0..spec.queues).map(|_| Doorbell::new()).collect::<nix::Result<_>>().map_err(failed)?,
        began,
    })
}

/// What the volume's threads share.
fn shared(
    spec: &Spec,
    primary: &Device,
    mail: Mail,
    desk: Option<Arc<dyn IntentDesk>>,
) -> Result<Arc<Shared>, VolumeError> {
    let track_size = usize::try_from(spec.track_size).unwrap_or(usize::MAX);
    let Mail { drain, keeper, bells, began } = mail;
    Ok(Arc::new(Shared {
        images: Arc::new(Images::new(image_count(spec), track_size)?),
        drain,
        keeper,
        desk,
        bells,
        zeroing: primary.limits().zeroing,
        abandoned: AtomicBool::new(false),
        handing_over: AtomicBool::new(false),
        handed_over: AtomicUsize::new(0),
        began,
    }))
}

/// The two bitmaps, and what is to be said if they could not be locked in memory.
fn structures(geometry: &Geometry) -> Result<([Bitmap; 2], Option<String>), MemoryError> {
    let words = usize::try_from(Bitmap::words_for(geometry.tracks())).unwrap_or(usize::MAX);
    let two = [Words::new(words)?, Words::new(words)?];
    let warning = two.iter().find_map(Words::lock_warning).map(str::to_owned);
    Ok((two.map(|words| Bitmap::new(geometry.tracks(), words)), warning))
}

/// The structures with what is out of sync, and what is wrong with their memory.
fn tracking(
    spec: &Spec,
    geometry: &Geometry,
    epoch: Arc<Epoch>,
    marks: &Marks,
) -> Result<(Arc<Tracking>, Option<String>), MemoryError> {
    let (structures, lock_warning) = structures(geometry)?;
    let tracking = Tracking::new(*geometry, spec.queues.into(), epoch, structures);
    match marks {
        Marks::All => tracking.out_of_sync().set_all(),
        Marks::These(tracks) => tracks.mark(tracking.out_of_sync()),
    }
    Ok((Arc::new(tracking), lock_warning))
}

/// Takes the memory of the marks while the volume is served already: of a large volume that takes a while.
fn populate(name: &str, tracking: Arc<Tracking>, regions: Arc<Regions>) {
    let work = move || {
        let _ = process::become_io_flusher();
        tracking.out_of_sync().populate();
        tracking.change_recording().populate();
        regions.populate();
    };
    // Without the thread each page is taken when it is first touched.
    drop(thread::Builder::new().name(format!("{name}-memory")).spawn(work));
}

/// At least one track.
fn run_bytes(spec: &Spec) -> u64 {
    RUN_BYTES.max(spec.track_size)
}

fn limits(spec: &Spec) -> Limits {
    Limits {
        window: spec.window,
        window_yielding: (spec.window / 4).max(1),
        run_tracks: run_bytes(spec) / spec.track_size,
        flush_bytes: FLUSH_BYTES,
        flush_ms: FLUSH_MS,
        unreadable_max: UNREADABLE_MAX,
    }
}

/// Differs from volume to volume, so that they do not retry in step.
fn seed(name: &str) -> u64 {
    let mut hasher = DefaultHasher::new();
    (name, std::process::id()).hash(&mut hasher);
    hasher.finish()
}
