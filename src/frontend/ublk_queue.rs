//! A ublk queue on its thread: one ring for the host's requests, the primary's, the intent of its cold writes and
//! the doorbell. The only file that touches tags; nothing here is specific to mirroring.

use super::intent_requests::IntentRequests;
use super::intent_write::IntentDesk;
use super::queue_io::{Handler, QueueIo, Zeroing};
use super::request::{Request, Tag};
use crate::doorbell::Doorbell;
use crate::intent;
use crate::storage;
use crate::tracking::{Waiter, Waiters};
use crate::uploader::{ImageNo, ImageRead, Images, Mailbox, Message};
use io_uring::{IoUring, cqueue, opcode, squeue, types};
use libublk::helpers::IoBuf;
use libublk::io::{UblkDev, UblkQueue, ublk_init_task_ring, with_task_io_ring_mut};
use libublk::{BufDesc, UblkError, UblkIORes, UblkUringData, io::BufDescList};
use std::cell::{Cell, RefCell};
use std::io;
use std::sync::Arc;
use std::sync::atomic::{
    AtomicBool, AtomicUsize,
    Ordering::{Acquire, Relaxed, Release},
};
use std::thread;
use std::time::{Duration, Instant};

/// The primary among the ring's fixed files; 0 is the ublk character device.
const PRIMARY: types::Fixed = types::Fixed(1);
/// Completions looked at before the ring is entered again.
const BATCH: usize = 64;
/// How often a device that is handed over looks whether its queues are done.
const HAND_OVER_LOOK: Duration = Duration::from_millis(2);
/// Kind of an own request, in the bits 16 to 23 of its user data; the tag is below, an image's number above.
const KIND_PRIMARY: u64 = 1 << 16;
const KIND_IMAGE: u64 = 2 << 16;
const KIND_BELL: u64 = 3 << 16;
const KIND_INTENT: u64 = 4 << 16;
const KIND_MASK: u64 = 0xff << 16;
const IMAGE_SHIFT: u32 = 24;

/// What all queues of a device share.
#[derive(Debug)]
pub struct Shared {
    pub images: Arc<Images>,
    pub drain: Arc<Mailbox>,
    pub keeper: Arc<intent::Mailbox>,
    /// Where queues have their intent written; none if no intent is kept.
    pub desk: Option<Arc<dyn IntentDesk>>,
    /// One per queue.
    pub bells: Arc<[Doorbell]>,
    pub zeroing: storage::Zeroing,
    /// The device could not be started: its queues end although nobody has stopped it.
    pub abandoned: AtomicBool,
    /// The device is left to the next daemon: its queues take nothing new.
    pub handing_over: AtomicBool,
    /// Queues that have ended what they had begun, after that.
    pub handed_over: AtomicUsize,
    /// Time 0 of all times.
    pub began: Instant,
}

impl Shared {
    /// Rings the doorbells of the queues that found a claim taken.
    pub fn wake_queues(&self, waiters: Waiters) {
        for (queue, bell) in self.bells.iter().enumerate() {
            if waiters.contains(Waiter::queue(queue)) {
                bell.ring();
            }
        }
    }

    pub(super) fn abandon(&self) {
        self.abandoned.store(true, Relaxed);
        self.ring_all();
    }

    /// Blocks until the queues have ended what they had begun, or one has ended in another way.
    pub(super) fn hand_over(&self, queues: usize, has_ended: impl Fn() -> bool) {
        self.handing_over.store(true, Relaxed);
        self.ring_all();
        while self.handed_over.load(Acquire) < queues && !has_ended() {
            thread::sleep(HAND_OVER_LOOK);
            // One may wait for metadata that begins to hang.
            self.ring_all();
        }
    }

    pub fn ring_all(&self) {
        for bell in &*self.bells {
            bell.ring();
        }
    }
}

/// One queue's way to the ring, as its handler sees it.
struct UblkIo<'a> {
    queue: &'a UblkQueue<'a>,
    memory: &'a [IoBuf<u8>],
    /// The ring knows the memory of each tag by the tag's number.
    registered: bool,
    shared: &'a Shared,
    /// Tags that the kernel has, and own requests under way.
    at_kernel: usize,
    own: usize,
    intent: &'a mut IntentRequests,
    /// The time of this turn, once somebody has asked for it.
    now_us: Cell<Option<u64>>,
    failed: Option<UblkError>,
}

impl UblkIo<'_> {
    fn submit(&mut self, entry: squeue::Entry, user_data: u64) {
        let entry = entry.user_data(user_data | UblkUringData::Target as u64);
        self.own += 1;
        if let Err(error) = self.queue.ublk_submit_sqe_sync(entry) {
            self.failed = Some(error);
        }
    }

    fn memory(&self, tag: Tag, done: u32) -> *mut u8 {
        self.memory[usize::from(tag)].as_mut_ptr().wrapping_add(usize::try_from(done).unwrap_or(0))
    }
}

impl UblkIo<'_> {
    /// At the end of a turn: the intent that its cold writes wait for is written, all of it at once.
    fn attend_to_intent(&mut self, handler: &mut impl Handler) {
        let (submission, rung) = self.intent.attend();
        if let Some((place, entry)) = submission {
            self.submit(entry, KIND_INTENT | u64::from(place));
        }
        if rung {
            handler.rung(self);
        }
    }
}

impl QueueIo for UblkIo<'_> {
    #[inline]
    fn read(&mut self, tag: Tag, offset: u64, length: u32, done: u32) {
        let memory = self.memory(tag, done);
        let entry = if self.registered {
            opcode::ReadFixed::new(PRIMARY, memory, length, tag).offset(offset).build()
        } else {
            opcode::Read::new(PRIMARY, memory, length).offset(offset).build()
        };
        self.submit(entry, KIND_PRIMARY | u64::from(tag));
    }

    #[inline]
    fn write(&mut self, tag: Tag, offset: u64, length: u32, done: u32, durable: bool) {
        let memory = self.memory(tag, done);
        let flags = if durable { libc::RWF_DSYNC } else { 0 };
        let entry = if self.registered {
            opcode::WriteFixed::new(PRIMARY, memory, length, tag).offset(offset).rw_flags(flags).build()
        } else {
            opcode::Write::new(PRIMARY, memory, length).offset(offset).rw_flags(flags).build()
        };
        self.submit(entry, KIND_PRIMARY | u64::from(tag));
    }

    fn flush(&mut self, tag: Tag) {
        let entry = opcode::Fsync::new(PRIMARY).flags(types::FsyncFlags::DATASYNC).build();
        self.submit(entry, KIND_PRIMARY | u64::from(tag));
    }

    fn zero(&mut self, tag: Tag, offset: u64, length: u32, how: Zeroing) {
        let zeroing = &self.shared.zeroing;
        let mode = match how {
            Zeroing::Punch => zeroing.unmap.or(zeroing.keep),
            Zeroing::Keep => zeroing.keep.or(zeroing.unmap),
        };
        // Without a mode neither discard nor write-zeroes was offered; the mode 0 would only allocate.
        let mode = mode.unwrap_or(storage::limits::ZERO_RANGE);
        let entry = opcode::Fallocate::new(PRIMARY, u64::from(length)).offset(offset).mode(mode).build();
        self.submit(entry, KIND_PRIMARY | u64::from(tag));
    }

    fn read_image(&mut self, tag: Tag, read: ImageRead) {
        let images = &self.shared.images;
        images.reading(read);
        let ImageRead { image, offset, length, done, .. } = read;
        let memory = images.pointer(image).wrapping_add(usize::try_from(done).unwrap_or(0));
        let entry = opcode::Read::new(PRIMARY, memory, length - done).offset(offset + u64::from(done)).build();
        self.submit(entry, KIND_IMAGE | u64::from(tag) | (image.0 as u64) << IMAGE_SHIFT);
    }

    #[inline]
    fn complete(&mut self, tag: Tag, result: i32) {
        let memory = BufDesc::Slice(self.memory[usize::from(tag)].as_slice());
        match self.queue.complete_io_cmd_unified(tag, memory, Ok(UblkIORes::Result(result))) {
            Ok(()) => self.at_kernel += 1,
            Err(error) => self.failed = Some(error),
        }
    }

    fn take_image(&mut self) -> Option<ImageNo> {
        self.shared.images.take()
    }

    fn free_image(&mut self, image: ImageNo) {
        self.shared.images.free(image);
    }

    fn tell_drain(&mut self, message: Message) {
        self.shared.drain.tell(message);
    }

    fn tell_keeper(&mut self, message: intent::Message) {
        if !matches!(message, intent::Message::Want { .. }) || !self.intent.take(message) {
            self.shared.keeper.tell(message);
        }
    }

    fn wake(&mut self, waiters: Waiters) {
        if waiters.none() {
            return;
        }
        self.shared.wake_queues(waiters);
        if waiters.contains(Waiter::DRAIN) {
            self.shared.drain.tell(Message::Look);
        }
    }

    fn now_us(&self) -> u64 {
        let clock = || u64::try_from(self.shared.began.elapsed().as_micros()).unwrap_or(u64::MAX);
        let now = self.now_us.get().unwrap_or_else(clock);
        self.now_us.set(Some(now));
        now
    }
}

/// Serves one queue on the calling thread until the device is stopped. `failed` is told if it fails, before it waits
/// for the kernel to end what is under way, which takes until the device is stopped.
pub(super) fn serve(
    index: u16,
    device: &UblkDev,
    shared: &Shared,
    handler: &mut impl Handler,
    failed: impl Fn(&UblkError),
) {
    let ring = init_ring(device.tgt.sq_depth, device.tgt.cq_depth);
    let mut memory = device.alloc_queue_io_bufs();
    let registered = ring.map(|()| register(&memory));
    if !matches!(registered, Ok(true)) {
        // Every page is touched now, and with that locked: not by the first write-back, for which memory may be short.
        memory.iter_mut().for_each(IoBuf::zero_buf);
    }
    let intent = IntentRequests::new(index, device.dev_info.queue_depth, shared.desk.as_ref());
    let (registered, mut intent) = match (registered, intent) {
        (Ok(registered), Ok(intent)) => (registered, intent),
        (Err(error), _) => return failed(&error),
        (_, Err(_)) => return failed(&UblkError::OtherError(-libc::ENOMEM)),
    };
    if serve_with(index, device, shared, handler, (&memory, registered, &mut intent), failed).is_err() {
        // Requests may be under way that still refer to it.
        std::mem::forget(memory);
    }
    intent.leave();
}

fn serve_with(
    index: u16,
    device: &UblkDev,
    shared: &Shared,
    handler: &mut impl Handler,
    (memory, registered, intent): (&Vec<IoBuf<u8>>, bool, &mut IntentRequests),
    failed: impl Fn(&UblkError),
) -> Result<(), UblkError> {
    let queue = UblkQueue::new(index, device)
        .and_then(|queue| queue.submit_fetch_commands_unified(BufDescList::Slices(Some(memory))));
    let queue = queue.inspect_err(&failed)?;
    let depth = usize::from(device.dev_info.queue_depth);
    let mut io = UblkIo {
        queue: &queue,
        memory,
        registered,
        shared,
        at_kernel: depth,
        own: 0,
        intent,
        now_us: Cell::new(None),
        failed: None,
    };
    let bell = &shared.bells[usize::from(index)];
    arm(bell, &mut io);
    turn(bell, handler, &mut io).inspect_err(|error| {
        failed(error);
        if shared.abandoned.load(Relaxed) {
            leave_ring(bell);
        }
    })
}

/// Works until the device has been stopped, or the queue fails. Never returns from a device that is handed over.
fn turn(bell: &Doorbell, handler: &mut impl Handler, io: &mut UblkIo) -> Result<(), UblkError> {
    let shared = io.shared;
    let mut stopping = false;
    loop {
        // The bell's poll is always under way and refers to no memory. Intent writes that may never be answered are
        // left at the end: what waited for them is given up.
        let handing_over = shared.handing_over.load(Relaxed);
        let left = if stopping || handing_over { io.intent.hopeless() } else { 0 };
        let idle = io.own <= 1 + left;
        if idle && stopping && io.at_kernel == 0 {
            if left > 0 {
                leave_ring(bell);
            }
            return Ok(());
        }
        if idle && handing_over && !handler.is_serving() {
            // The last answers. What has not begun the kernel hands to the next one who serves the device.
            let submitted = with_task_io_ring_mut(|ring| ring.submit());
            submitted.map_err(UblkError::IOError)?;
            shared.handed_over.fetch_add(1, Release);
            loop {
                thread::park();
            }
        }
        wait()?;
        io.now_us.set(None);
        if shared.abandoned.load(Relaxed) {
            return Err(UblkError::OtherError(-libc::ECANCELED));
        }
        let mut batch: [Option<cqueue::Entry>; BATCH] = [const { None }; BATCH];
        loop {
            // The places first: zipped the other way round, a completion for which there is no place would be lost.
            let count = with_task_io_ring_mut(|ring| {
                batch.iter_mut().zip(ring.completion()).map(|(place, entry)| *place = Some(entry)).count()
            });
            for completion in batch[..count].iter_mut().filter_map(Option::take) {
                stopping |= dispatch(&completion, bell, handler, io);
            }
            if count < BATCH {
                break;
            }
        }
        io.attend_to_intent(handler);
        if let Some(error) = io.failed.take() {
            return Err(error);
        }
    }
}

/// Ends the ring of a device that has never been started although the kernel has commands in it, by putting another
/// into its place: libublk would wait for them in giving the files back, and they end only with the ring.
fn leave_ring(bell: &Doorbell) {
    with_task_io_ring_mut(|ring| {
        let other = IoUring::new(1).and_then(|other| {
            other.submitter().register_files(&[bell.raw_fd()])?;
            Ok(other)
        });
        match other {
            Ok(other) => *ring = other,
            Err(error) => tracing::warn!("a queue that is not wanted cannot end: {error}"),
        }
    });
}

/// A ring that only this thread enters, and whose completions run when it does: measurably less work per request.
fn init_ring(sq_depth: u16, cq_depth: u16) -> Result<(), UblkError> {
    ublk_init_task_ring(|cell| {
        let ring = IoUring::builder()
            .setup_cqsize(u32::from(cq_depth))
            .setup_single_issuer()
            .setup_defer_taskrun()
            .build(u32::from(sq_depth))
            .map_err(UblkError::IOError)?;
        cell.set(RefCell::new(ring)).map_err(|_| UblkError::OtherError(-libc::EEXIST))
    })
}

/// Has the ring hold the tags' memory, so that the kernel need not look up and hold its pages for every request anew,
/// and so that all of them are there from now on. Says whether it does; where it cannot, requests take a little longer
/// and that is all.
#[expect(unsafe_code, reason = "registering memory with a ring")]
fn register(memory: &[IoBuf<u8>]) -> bool {
    let all: Vec<_> = memory
        .iter()
        .map(|tag| libc::iovec { iov_base: tag.as_mut_ptr().cast(), iov_len: tag.as_slice().len() })
        .collect();
    // SAFETY: the ring holds the pages by itself, and the memory is neither moved nor given back before the ring has
    // ended: by `serve`, which forgets it if requests may still be under way.
    let done = with_task_io_ring_mut(|ring| unsafe { ring.submitter().register_buffers(&all) });
    done.inspect_err(|error| tracing::debug!("a queue's memory cannot be registered: {error}")).is_ok()
}

fn arm(bell: &Doorbell, io: &mut UblkIo) {
    let entry = opcode::PollAdd::new(types::Fd(bell.raw_fd()), u32::try_from(libc::POLLIN).unwrap_or(1)).build();
    io.submit(entry, KIND_BELL);
}

/// Submits what was queued and sleeps until something completes.
fn wait() -> Result<(), UblkError> {
    match with_task_io_ring_mut(|ring| ring.submit_and_wait(1)) {
        Ok(_) => Ok(()),
        Err(error) if matches!(error.raw_os_error(), Some(libc::EINTR | libc::EBUSY | libc::EAGAIN)) => Ok(()),
        Err(error) => Err(UblkError::IOError(error)),
    }
}

/// One completion. Returns whether it says that the device is being stopped.
#[inline]
fn dispatch(completion: &cqueue::Entry, bell: &Doorbell, handler: &mut impl Handler, io: &mut UblkIo) -> bool {
    let (data, result) = (completion.user_data(), completion.result());
    let tag = Tag::try_from(data & 0xffff).unwrap_or(Tag::MAX);
    if data & UblkUringData::Target as u64 == 0 {
        io.at_kernel -= 1;
        if result != 0 {
            // The kernel took the tag back: the device is stopping.
            return true;
        }
        if io.shared.handing_over.load(Relaxed) {
            return false;
        }
        let description = io.queue.get_iod(tag);
        if let Some(request) = Request::parse(description.op_flags, description.start_sector, description.nr_sectors) {
            handler.arrive(tag, request, io);
        } else {
            tracing::warn!("a request of an unknown kind is refused: {description:?}");
            io.complete(tag, -libc::EOPNOTSUPP);
        }
        return false;
    }
    io.own -= 1;
    match data & KIND_MASK {
        KIND_PRIMARY => handler.primary_done(tag, result, io),
        KIND_INTENT => {
            if let Some((place, again)) = io.intent.answered(tag, result) {
                io.submit(again, KIND_INTENT | u64::from(place));
            }
        }
        KIND_IMAGE => {
            let number = (data & !(UblkUringData::Target as u64)) >> IMAGE_SHIFT;
            let image = ImageNo(usize::try_from(number).unwrap_or(usize::MAX));
            if let Some(read) = io.shared.images.filled(image, result) {
                handler.image_read(tag, read, result, io);
            }
        }
        _ => {
            bell.answer();
            arm(bell, io);
            handler.rung(io);
        }
    }
    false
}

/// Errors of a queue, for messages.
pub(super) fn describe(error: &UblkError) -> io::Error {
    match error {
        UblkError::OtherError(code) | UblkError::UringIOError(code) if *code < 0 => io::Error::from_raw_os_error(-code),
        other => io::Error::other(other.to_string()),
    }
}
