//! The ublk device: made, started, stopped and removed by one thread of its own, because control commands of some
//! kernels never return (H28) and nothing else may wait for them. Whoever asks waits with a limit.
//!
//! Stop order: the volume has let every held write go; `STOP_DEV` while the queues still serve; the queue threads end;
//! their files and mappings are closed; `DEL_DEV`. Any other order can wait for itself.
//!
//! A device outlives a daemon that is killed (H22): the kernel holds its I/O, hands what the daemon had in hand to the
//! next one once more, and goes on with what waited. A write done twice is the same bytes twice, and is marked twice.

use super::intent_requests::METADATA;
use super::leftovers::Owner;
use super::queue_io::Handler;
use super::request::SECTOR_SHIFT;
use super::run_dir;
use super::ublk_queue::{self, Shared};
use super::unserved;
use crate::storage::{Device, process};
use libublk::ctrl::{UblkCtrl, UblkCtrlBuilder};
use libublk::io::UblkDev;
use libublk::{UblkError, UblkFlags, sys};
use std::fs;
use std::io;
use std::path::Path;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::sync::mpsc::{self, Receiver, RecvTimeoutError, Sender};
use std::thread::{self, JoinHandle};
use std::time::Duration;

/// A control command that takes longer than this is taken for one that never returns.
const COMMAND_TIMEOUT: Duration = Duration::from_secs(30);
/// Stopping writes out what a file system on the device still has, which may take its time.
const STOP_TIMEOUT: Duration = Duration::from_secs(300);
/// A device that is left to the next daemon has only what is at the primary to wait for.
const HAND_OVER_TIMEOUT: Duration = Duration::from_secs(60);
/// How long the kernel may take to end what a killed daemon left of a device: it notices at the latest when a request
/// of the host has waited for its time-out, which is 30 seconds unless [`NOTICE_MS`] could be set.
const TAKE_BACK_TIMEOUT: Duration = Duration::from_secs(90);
/// Where the kernel learns of a server's end only from a request that it has waited for too long, because the server
/// had every tag in hand, this is too long, in milliseconds. As long as the server lives it waits on.
const NOTICE_MS: &str = "1000";
/// Of this, until its end lets go of the device's file.
const FORGET_TIMEOUT: Duration = Duration::from_secs(20);
/// libublk asks for half a minute at a time.
const TAKE_BACK_TRIES: u8 = 1;
/// How long it may take until all its requests can be taken: its users wait already, and giving up gains nothing.
const RESTART_TIMEOUT: Duration = Duration::from_secs(300);
/// Largest request of the host, in bytes: each tag has memory for one.
pub const REQUEST_BYTES_MAX: u32 = 512 << 10;
/// Largest discard or write-zeroes, in bytes: bounds how long marking one takes.
const DISCARD_BYTES_MAX: u32 = 64 << 20;

/// What is done to a device, for messages.
const ADD: &str = "add the device";
const TAKE_BACK: &str = "take the device back";
const START: &str = "start the device";
const STOP: &str = "stop the device";
const HAND_OVER: &str = "hand the device over";

/// What the device is to look like.
#[derive(Debug, Clone)]
pub struct Shape {
    pub size: u64,
    pub queues: u16,
    pub depth: u16,
    /// What the device says of its volume.
    pub owner: Owner,
    /// The device of this number waits to be taken back.
    pub waiting: Option<u32>,
}

/// Why the device could not be made or removed.
#[derive(Debug, thiserror::Error)]
pub enum DeviceError {
    #[error(
        "this kernel has no ublk driver: /dev/ublk-control is missing; run modprobe ublk_drv (Linux 6.12 or newer)"
    )]
    NoDriver,
    #[error("cannot {0}: {1}; see the kernel's log")]
    Command(&'static str, io::Error),
    #[error(
        "the kernel did not answer to '{0}' within {1} seconds; see its log, and restart the machine if a ublk \
             device can be neither used nor removed"
    )]
    Stuck(&'static str, u64),
    #[error(
        "/dev/ublkb{0} was made over another primary: this one {1}; bring the right one back, or take the volume down"
    )]
    Unfit(i32, &'static str),
    #[error("{0}")]
    RunDir(io::Error),
    #[error("a queue of the device has failed, and with it the record of what it had under way; see the log")]
    Queue,
}

impl DeviceError {
    /// Whether the device may have been there, and been written to, before it went wrong.
    pub fn may_have_served(&self) -> bool {
        match self {
            Self::NoDriver | Self::RunDir(_) | Self::Unfit(..) => false,
            Self::Command(what, _) => *what == START || *what == STOP,
            Self::Stuck(what, _) => *what != ADD && *what != TAKE_BACK,
            Self::Queue => true,
        }
    }
}

/// A device that is served.
#[derive(Debug)]
pub struct UblkDevice {
    id: u32,
    orders: Sender<Order>,
    answers: Receiver<Answer>,
    thread: Option<JoinHandle<()>>,
    ends: Arc<Ends>,
}

/// What has become of the queues.
#[derive(Debug, Default)]
struct Ends {
    /// One has ended, because the device was stopped or because it failed.
    ended: AtomicBool,
    /// One has ended with requests under way.
    failed: AtomicBool,
}

enum Order {
    Stop,
    HandOver,
}

#[derive(Debug)]
enum Answer {
    /// The device is there: its number.
    Added(u32),
    Started,
    Stopped,
    Failed(DeviceError),
}

impl UblkDevice {
    /// Makes and starts a device over `primary`. `handler` makes the handler of each queue.
    ///
    /// Blocks up to the command limit; not for the control thread.
    pub fn start<H: Handler>(
        name: &str,
        shape: Shape,
        primary: Arc<Device>,
        shared: Arc<Shared>,
        handler: impl Fn(usize) -> H + Send + Sync + 'static,
    ) -> Result<Self, DeviceError> {
        if !Path::new("/dev/ublk-control").exists() {
            return Err(DeviceError::NoDriver);
        }
        run_dir::secure(Path::new(run_dir::RUN_DIR)).map_err(DeviceError::RunDir)?;
        let (orders, to_do) = mpsc::channel();
        let (done, answers) = mpsc::channel();
        let ends = Arc::new(Ends::default());
        let (adding, limit, start_limit) = match shape.waiting {
            None => (ADD, COMMAND_TIMEOUT, COMMAND_TIMEOUT),
            Some(_) => (TAKE_BACK, TAKE_BACK_TIMEOUT, RESTART_TIMEOUT),
        };
        let service = Service { shape, primary, shared, handler: Arc::new(handler), ends: ends.clone() };
        let thread = thread::Builder::new()
            .name(format!("{name}-device"))
            .spawn(move || service.run(&to_do, &done))
            .map_err(|error| DeviceError::Command("start a thread", error))?;
        let mut device = Self { id: 0, orders, answers, thread: Some(thread), ends };
        match device.answer(adding, limit)? {
            Answer::Added(id) => device.id = id,
            Answer::Failed(error) => return Err(error),
            Answer::Started | Answer::Stopped => {}
        }
        match device.answer(START, start_limit)? {
            Answer::Failed(error) => Err(error),
            _ => Ok(device),
        }
    }

    fn answer(&self, what: &'static str, limit: Duration) -> Result<Answer, DeviceError> {
        self.answers.recv_timeout(limit).map_err(|error| match error {
            RecvTimeoutError::Timeout => DeviceError::Stuck(what, limit.as_secs()),
            RecvTimeoutError::Disconnected => {
                DeviceError::Command(what, io::Error::other("the device's thread has ended"))
            }
        })
    }

    /// Number of the device: it is `/dev/ublkb` and this.
    pub fn id(&self) -> u32 {
        self.id
    }

    pub fn path(&self) -> String {
        format!("/dev/ublkb{}", self.id)
    }

    /// Whether nobody serves the device any more, or not all of it, although nobody has stopped it here: it was stopped
    /// or removed by another program, or a queue has failed.
    pub fn has_ended(&self) -> bool {
        self.ends.ended.load(Relaxed)
    }

    /// Stops and removes the device. Every held write must have been let go. Blocks up to the command limit.
    pub fn stop(mut self) -> Result<(), DeviceError> {
        self.end(Order::Stop, STOP, STOP_TIMEOUT)?;
        if let Some(thread) = self.thread.take() {
            let _ = thread.join();
        }
        Ok(())
    }

    /// Stops serving the device, which stays: from the end of this process on the kernel holds its I/O until another
    /// one takes it back. Blocks up to a limit.
    pub fn hand_over(self) -> Result<(), DeviceError> {
        self.end(Order::HandOver, HAND_OVER, HAND_OVER_TIMEOUT)
    }

    fn end(&self, order: Order, what: &'static str, limit: Duration) -> Result<(), DeviceError> {
        let _ = self.orders.send(order);
        match self.answer(what, limit)? {
            Answer::Failed(error) => Err(error),
            _ => Ok(()),
        }
    }
}

/// The device thread: everything that uses libublk's control ring, which is the thread's own.
struct Service<F> {
    shape: Shape,
    primary: Arc<Device>,
    shared: Arc<Shared>,
    handler: Arc<F>,
    ends: Arc<Ends>,
}

impl<H: Handler, F: Fn(usize) -> H + Send + Sync + 'static> Service<F> {
    fn run(&self, orders: &Receiver<Order>, answers: &Sender<Answer>) {
        let _ = process::become_io_flusher();
        let control = match self.shape.waiting {
            None => add(&self.shape).map_err(|error| command(ADD, &error)),
            Some(id) => self.take_back(id),
        };
        let fail = |error| drop(answers.send(Answer::Failed(error)));
        let control = match control {
            Ok(control) => control,
            Err(error) => return fail(error),
        };
        // What could not be made is removed; what could not be taken back goes on waiting, and its users with it.
        let give_up = || drop(self.shape.waiting.is_none().then(|| control.del_dev()));
        if answers.send(Answer::Added(control.dev_info().dev_id)).is_err() {
            // Nobody waits any more: it took too long.
            return give_up();
        }
        let mut threads = Vec::new();
        let served = self.serve(&control, &mut threads);
        let started = served.and_then(|device| control.start_dev(&device).map(|_| device));
        let device = match started {
            Ok(device) => device,
            Err(error) => {
                // Not by stopping the device, which would end it for those who use it.
                self.shared.abandon();
                join(threads);
                give_up();
                return fail(command(START, &error));
            }
        };
        if self.shape.waiting.is_none() {
            notice_soon(control.dev_info().dev_id);
        }
        let _ = answers.send(Answer::Started);
        let ended = match orders.recv() {
            Ok(Order::HandOver) => {
                let has_ended = || self.ends.ended.load(Relaxed);
                self.shared.hand_over(threads.len(), has_ended);
                let _ = answers.send(if has_ended() { Answer::Failed(DeviceError::Queue) } else { Answer::Stopped });
                // The end of the process ends these threads, and that the kernel takes for the end of the server. Were
                // their rings closed before, requests that are just coming in would be lost in Linux 6.12.
                join(threads);
                return;
            }
            // A controller that is gone without a word wants the device gone as well, but not from under those who
            // waited.
            Err(_) if self.shape.waiting.is_some() => {
                tracing::error!("{} was taken back too late; restart the daemon", control.get_bdev_path());
                loop {
                    thread::park();
                }
            }
            Ok(Order::Stop) | Err(_) => remove(&control, (device, threads), &self.ends),
        };
        let _ = answers.send(match ended {
            Ok(()) if self.ends.failed.load(Relaxed) => Answer::Failed(DeviceError::Queue),
            Ok(()) => Answer::Stopped,
            Err(error) => Answer::Failed(command(STOP, &error)),
        });
    }

    fn take_back(&self, id: u32) -> Result<UblkCtrl, DeviceError> {
        let failed = |error: UblkError| command(TAKE_BACK, &error);
        let id = i32::try_from(id).map_err(|_| failed(UblkError::InvalidVal))?;
        let waiting = UblkCtrl::new_simple(id).map_err(failed)?;
        let mut old = sys::ublk_params { len: PARAMETERS_BYTES, ..Default::default() };
        waiting.get_params(&mut old).map_err(failed)?;
        if let Some(why) = unfit(&old, &parameters(self.shape.size, &self.primary)) {
            return Err(DeviceError::Unfit(id, why));
        }
        recover(id, &waiting, &self.shape).map_err(failed)
    }

    /// Starts a thread per queue.
    fn serve(&self, control: &UblkCtrl, threads: &mut Vec<JoinHandle<()>>) -> Result<Arc<UblkDev>, UblkError> {
        let depth = control.dev_info().queue_depth;
        let describe = |device: &mut UblkDev| {
            device.tgt.dev_size = self.shape.size;
            device.tgt.params = parameters(self.shape.size, &self.primary);
            // A request may need several entries: its own, and one for each before-image it has to keep.
            device.tgt.sq_depth = depth * 2;
            device.tgt.cq_depth = depth * 4;
            device.tgt.fds[1] = self.primary.raw_fd();
            device.tgt.nr_fds = 2;
            if let Some(metadata) = self.shared.desk.as_ref().and_then(|desk| desk.raw_fd()) {
                device.tgt.fds[METADATA] = metadata;
                device.tgt.nr_fds = 3;
            }
            Ok(())
        };
        let device = Arc::new(UblkDev::new("farpoint".to_owned(), describe, control)?);
        let (tids, started) = mpsc::channel();
        for queue in 0..device.dev_info.nr_hw_queues {
            let name = format!("ublk{}-q{queue}", device.dev_info.dev_id);
            let (device, shared, handler) = (device.clone(), self.shared.clone(), self.handler.clone());
            let (tids, ends) = (tids.clone(), self.ends.clone());
            let body = move || {
                let _ = process::become_io_flusher();
                let _ = tids.send((queue, nix::unistd::gettid().as_raw()));
                drop(tids);
                let mut handler = handler(usize::from(queue));
                let failed = |error: &UblkError| {
                    let error = ublk_queue::describe(error);
                    tracing::error!("queue {queue} has ended: {error}; take the volume down and up again");
                    // Whoever waits for the queues to be ready must not wait for this one.
                    device.notify_buffer_registration_complete(true);
                    ends.failed.store(true, Relaxed);
                    ends.ended.store(true, Relaxed);
                };
                ublk_queue::serve(queue, &device, &shared, &mut handler, failed);
                ends.ended.store(true, Relaxed);
            };
            let thread = thread::Builder::new().name(name).spawn(body);
            threads.push(thread.map_err(UblkError::IOError)?);
        }
        drop(tids);
        for (queue, tid) in started {
            control.set_thread_affinity(queue, tid);
            control.configure_queue(&device, queue, tid)?;
        }
        Ok(device)
    }
}

/// Lets the kernel notice soon that nobody serves the device any more. Only of a new device, which nobody uses yet and
/// which keeps the value: the kernel waits for all requests of the host first, and were the daemon killed meanwhile,
/// that wait would keep its files open, and the device from being taken back.
fn notice_soon(id: u32) {
    let path = format!("/sys/block/ublkb{id}/queue/io_timeout");
    if let Err(error) = fs::write(&path, NOTICE_MS) {
        tracing::warn!("{path} cannot be set: {error}; the users of a killed daemon's device may wait half a minute");
    }
}

fn remove(control: &UblkCtrl, (device, threads): Served, ends: &Ends) -> Result<(), UblkError> {
    let by_itself = ends.ended.load(Relaxed);
    let stopped = unless_gone(control.kill_dev());
    join(threads);
    // As long as its file is open its number is not another device's. If somebody else has removed it, that is what
    // keeps us from removing a stranger's.
    let kept = by_itself.then_some(device);
    // Not the waiting kind: whoever still has the device open keeps its number, but nothing else of it is left.
    let removed = stopped.and_then(|()| unless_gone(control.del_dev_async()));
    drop(kept);
    removed
}

/// That somebody else has removed the device is as good.
fn unless_gone(result: Result<i32, UblkError>) -> Result<(), UblkError> {
    match result {
        Err(error) if ublk_queue::describe(&error).raw_os_error() != Some(libc::ENODEV) => Err(error),
        _ => Ok(()),
    }
}

fn command(what: &'static str, error: &UblkError) -> DeviceError {
    DeviceError::Command(what, ublk_queue::describe(error))
}

fn join(threads: Vec<JoinHandle<()>>) {
    for thread in threads {
        let _ = thread.join();
    }
}

fn add(shape: &Shape) -> Result<UblkCtrl, UblkError> {
    // Requests that a killed daemon had in hand are done again by the next one, not failed.
    let flags = sys::UBLK_F_USER_RECOVERY | sys::UBLK_F_USER_RECOVERY_REISSUE;
    control(-1, shape, UblkFlags::UBLK_DEV_F_ADD_DEV, flags.into())
}

/// Begins to take a device back. The kernel refuses as long as it has not ended what the killed daemon left.
fn recover(id: i32, waiting: &UblkCtrl, shape: &Shape) -> Result<UblkCtrl, UblkError> {
    // Kernels with this feature forget who served a queue as soon as the daemon ends.
    let features = UblkCtrl::get_features().unwrap_or(0);
    if features & u64::from(sys::UBLK_F_UPDATE_SIZE) == 0 {
        unserved::announce(id, shape.queues, shape.depth, FORGET_TIMEOUT).map_err(UblkError::IOError)?;
    }
    let mut left = TAKE_BACK_TRIES;
    loop {
        match waiting.start_user_recover() {
            Ok(busy) if busy == -libc::EBUSY && left > 0 => left -= 1,
            Ok(error) if error < 0 => return Err(UblkError::OtherError(error)),
            result => {
                result?;
                break;
            }
        }
    }
    control(id, shape, UblkFlags::UBLK_DEV_F_RECOVER_DEV, 0)
}

/// Why a device that was made with the parameters `old` cannot be served by a primary that would have `new` ones. The
/// kernel gives a device no others as long as it exists.
fn unfit(old: &sys::ublk_params, new: &sys::ublk_params) -> Option<&'static str> {
    let (can, must) = (&new.discard, &old.discard);
    if old.basic.dev_sectors != new.basic.dev_sectors {
        Some("has another size")
    } else if old.basic.logical_bs_shift < new.basic.logical_bs_shift {
        Some("no longer takes writes as small as those of the device")
    } else if (must.max_discard_sectors > 0 || must.max_write_zeroes_sectors > 0)
        && can.max_discard_sectors == 0
        && can.max_write_zeroes_sectors == 0
    {
        Some("can no longer make ranges zero, which the device offers")
    } else {
        None
    }
}

fn control(id: i32, shape: &Shape, what: UblkFlags, flags: u64) -> Result<UblkCtrl, UblkError> {
    UblkCtrlBuilder::default()
        .name("farpoint")
        .id(id)
        .nr_queues(shape.queues)
        .depth(shape.depth)
        .io_buf_bytes(REQUEST_BYTES_MAX)
        // A queue's thread stays on one processor of those that the kernel feeds the queue from, as other ublk
        // servers do.
        .dev_flags(what | UblkFlags::UBLK_DEV_F_SINGLE_CPU_AFFINITY)
        .ctrl_flags(flags)
        .ctrl_target_flags(shape.owner.0)
        .build()
}

type Served = (Arc<UblkDev>, Vec<JoinHandle<()>>);

#[expect(clippy::cast_possible_truncation, reason = "some hundred bytes")]
const PARAMETERS_BYTES: u32 = size_of::<sys::ublk_params>() as u32;

/// The device's limits, from the primary's (H29).
fn parameters(size: u64, primary: &Device) -> sys::ublk_params {
    let limits = primary.limits();
    let shift = |bytes: u32| u8::try_from(bytes.max(512).ilog2()).unwrap_or(9);
    let discards = limits.discard.filter(|_| limits.zeroing.unmap.is_some());
    let zeroes = limits.zeroing.unmap.is_some() || limits.zeroing.keep.is_some();
    let attributes = sys::UBLK_ATTR_VOLATILE_CACHE | sys::UBLK_ATTR_FUA;
    let mut parameters = sys::ublk_params {
        len: PARAMETERS_BYTES,
        types: sys::UBLK_PARAM_TYPE_BASIC,
        basic: sys::ublk_param_basic {
            attrs: attributes,
            logical_bs_shift: shift(limits.logical_block),
            physical_bs_shift: shift(limits.physical_block.max(limits.logical_block)),
            io_min_shift: shift(limits.io_min.max(limits.logical_block)),
            io_opt_shift: shift(limits.io_opt.max(limits.io_min).max(limits.logical_block)),
            max_sectors: REQUEST_BYTES_MAX >> SECTOR_SHIFT,
            dev_sectors: size >> SECTOR_SHIFT,
            ..Default::default()
        },
        ..Default::default()
    };
    if discards.is_some() || zeroes {
        parameters.types |= sys::UBLK_PARAM_TYPE_DISCARD;
        let sectors = DISCARD_BYTES_MAX >> SECTOR_SHIFT;
        parameters.discard = sys::ublk_param_discard {
            discard_alignment: 0,
            discard_granularity: discards.unwrap_or(limits.logical_block).max(limits.logical_block),
            max_discard_sectors: if discards.is_some() { sectors } else { 0 },
            max_write_zeroes_sectors: if zeroes { sectors } else { 0 },
            max_discard_segments: 1,
            reserved0: 0,
        };
    }
    parameters
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_device_that_somebody_else_has_removed_needs_no_removal() {
        assert!(unless_gone(Err(UblkError::UringIOError(-libc::ENODEV))).is_ok());
        assert!(unless_gone(Err(UblkError::UringIOError(-libc::EBUSY))).is_err());
        assert!(unless_gone(Ok(0)).is_ok());
    }
}
