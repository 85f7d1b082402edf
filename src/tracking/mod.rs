//! The heart: which tracks changed, in which epoch, and who may touch a track at this instant.
//!
//! Every host write passes through [`Tracking`] twice, every track the drain sends once. Nothing here does I/O, reads a
//! clock, waits or allocates; all of it is atomic operations in one total order (`SeqCst`), because the arguments below
//! need one.
//!
//! **Two structures, two roles.** A volume has two bitmaps. Without an increment one is out-of-sync (OOS): writes mark
//! it, the drain empties it; the other is the empty spare. The cut makes the spare change recording (CR), and OOS,
//! which nobody marks any more, is what the consistency point still needs. When the increment ends, well or badly, CR
//! simply becomes OOS ([`Tracking::retire`]): after a completed one the old OOS is empty, after an aborted one what is
//! left of it is folded in ([`Tracking::fold`]). A write marks the bitmap it started with both times, whatever role
//! that has by then, so no role change ever waits for a write.
//!
//! **The cut.** [`Epoch`] is one word per daemon. Each volume of a cut is first armed with the coming epoch's number;
//! one store then cuts all of them, because a write compares the two. A write takes its epoch, raises its queue's count
//! for it and looks again: had the epoch moved in between, it retries. So when the word has moved and all counts of the
//! old epoch are zero, no write of it can come any more.
//!
//! **Claims.** Whoever reads a track for the cut (the drain or a colliding write) first claims it, then clears its
//! mark, reads it, and lets the claim go. A write after the cut claims too, for the length of a test: a mark found
//! clear under the claim says that the old content is safe elsewhere, and stays clear until the increment ends.

pub mod bitmap;
pub mod claims;
pub mod epoch;
mod sync;

use crate::bugs::{Bug, present};
use crate::geometry::{Geometry, TrackNo, TrackRange};
pub use bitmap::Bitmap;
pub use claims::{Claims, QUEUES_MAX, Waiter, Waiters};
pub use epoch::Epoch;
use std::sync::Arc;
use sync::{AtomicU32, AtomicU64, SeqCst};

/// The `cut` of a volume that is not part of one.
const NO_CUT: u64 = u64::MAX >> 1;

/// Which of a volume's two bitmaps a write marks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Structure(u8);

impl Structure {
    fn other(self) -> Self {
        Self(self.0 ^ 1)
    }

    fn index(self) -> usize {
        usize::from(self.0)
    }
}

/// A write that was let in: it counts as in flight until it is given to [`Tracking::finish`].
#[derive(Debug, PartialEq, Eq)]
#[must_use = "a ticket that is not finished keeps every later cut waiting for ever"]
pub struct Ticket {
    structure: Structure,
    queue: usize,
}

/// What becomes of an arriving write.
#[derive(Debug, PartialEq, Eq)]
pub enum Admission {
    Admitted(Ticket),
    /// The volume has cut and was not told to run yet: park the write and ask again when the doorbell rings.
    Held,
}

/// What a write after the cut finds at one of its tracks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Collision {
    /// The cut does not need the track's present content from the primary: write.
    None,
    /// The cut of this number does, and the caller now owns the track: keep its content, then [`Tracking::image_read`].
    Owned(u64),
    /// Somebody is reading it for this cut: park the write and ask again when the doorbell rings.
    Busy(u64),
}

/// Writes in flight of one queue, by structure; on a cache line of its own.
#[derive(Debug)]
#[repr(align(128))]
struct InFlight([AtomicU32; 2]);

/// Change tracking of one volume.
#[derive(Debug)]
pub struct Tracking {
    geometry: Geometry,
    epoch: Arc<Epoch>,
    /// Number of the epoch that the volume's cut begins ([`NO_CUT`] without one), and in the lowest bit the structure
    /// that writes before it mark. One word, so that a role change is one store.
    roles: AtomicU64,
    /// The newest cut whose held writes were let go.
    released: AtomicU64,
    /// The newest cut of which no track needs the primary any more: spares its writes the collision test.
    secured: AtomicU64,
    structures: [Bitmap; 2],
    claims: Claims,
    /// Tracks whose mark a colliding write has cleared and whose content the drain does not have yet.
    owned: AtomicU64,
    /// 1 while the drain has contents that are neither marked nor durable.
    in_hand: AtomicU64,
    /// 1 while the drain sleeps for want of marks.
    asleep: AtomicU64,
    /// The aborted cut whose remains are to be folded in; 0 without one.
    unfolded: AtomicU64,
    /// How often tracks were put back out of sync that had been taken.
    put_back: AtomicU64,
    in_flight: Box<[InFlight]>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Roles {
    cut: u64,
    before: Structure,
}

impl Roles {
    fn unpack(word: u64) -> Self {
        Self { cut: word >> 1, before: Structure(u8::from(word & 1 == 1)) }
    }

    fn pack(self) -> u64 {
        self.cut << 1 | u64::from(self.before.0)
    }
}

impl Tracking {
    /// `structures` are two empty bitmaps of the geometry's number of tracks.
    pub fn new(geometry: Geometry, queues: usize, epoch: Arc<Epoch>, structures: [Bitmap; 2]) -> Self {
        let in_flight = (0..queues).map(|_| InFlight([AtomicU32::new(0), AtomicU32::new(0)])).collect();
        Self {
            geometry,
            epoch,
            roles: AtomicU64::new(Roles { cut: NO_CUT, before: Structure(0) }.pack()),
            released: AtomicU64::new(0),
            secured: AtomicU64::new(0),
            structures,
            claims: Claims::new(),
            owned: AtomicU64::new(0),
            in_hand: AtomicU64::new(0),
            asleep: AtomicU64::new(0),
            unfolded: AtomicU64::new(0),
            put_back: AtomicU64::new(0),
            in_flight,
        }
    }

    pub fn geometry(&self) -> &Geometry {
        &self.geometry
    }

    /// Tracks that the drain has to send: OOS.
    pub fn out_of_sync(&self) -> &Bitmap {
        self.bitmap(self.roles().before)
    }

    /// Tracks written since the cut: CR. Empty without an increment.
    pub fn change_recording(&self) -> &Bitmap {
        self.bitmap(self.roles().before.other())
    }

    pub fn claims(&self) -> &Claims {
        &self.claims
    }

    // A host write, in the order of its life.

    /// Lets a write in, or says that it must be held. The first step of a write's life.
    #[inline]
    pub fn admit(&self, queue: usize) -> Admission {
        loop {
            let word = self.roles.load(SeqCst);
            let roles = Roles::unpack(word);
            let after = self.epoch.number() >= roles.cut;
            if after && self.released.load(SeqCst) < roles.cut {
                return Admission::Held;
            }
            let structure = if after { roles.before.other() } else { roles.before };
            let count = &self.in_flight[queue].0[structure.index()];
            count.fetch_add(1, SeqCst);
            if self.roles.load(SeqCst) == word && (self.epoch.number() >= roles.cut) == after {
                return Admission::Admitted(Ticket { structure, queue });
            }
            // The roles or the epoch moved between the look and the count: the count may have come too late for whoever
            // waits for the old epoch to end.
            count.fetch_sub(1, SeqCst);
        }
    }

    /// Marks every track of the write, in the structure of its epoch. Before its data is submitted, and again when it
    /// is done, well or badly: meanwhile the drain may have cleared the mark and read the track half written (H2, H11).
    #[inline]
    pub fn mark(&self, ticket: &Ticket, tracks: TrackRange) {
        self.bitmap(ticket.structure).set_run(tracks);
    }

    /// Whether a write must look for collisions at all: it came after a cut that still needs tracks of the primary.
    #[inline]
    pub fn may_collide(&self, ticket: &Ticket) -> bool {
        let roles = self.roles();
        ticket.structure != roles.before && self.epoch.number() >= roles.cut && self.secured.load(SeqCst) < roles.cut
    }

    /// Looks whether the cut still needs the present content of `track` (seed 004 \[0042\], boxes 602 and 604).
    pub fn collide(&self, track: TrackNo, waiter: Waiter) -> Collision {
        let roles = self.roles();
        let oos = self.bitmap(roles.before);
        if present(Bug::ReadingIsNoCollision) && !oos.is_set(track) {
            return Collision::None;
        }
        if !self.claims.claim(track, waiter) {
            return Collision::Busy(roles.cut);
        }
        // Only the holder of the claim clears the mark, so between the look and the clear it stays. Counted before it
        // is cleared: whoever finds no mark, and then nothing owned, knows that the drain has every content. If the
        // increment has ended meanwhile nothing collides, and the mark is the write's own.
        if roles.cut != NO_CUT && oos.is_set(track) {
            self.owned.fetch_add(1, SeqCst);
            oos.clear(track);
            return Collision::Owned(roles.cut);
        }
        self.claims.release(track);
        Collision::None
    }

    /// A colliding write that found no room to keep its track's content gives the track back: marked, and free to the
    /// drain, which it then waits for. It counts as owned until the drain has been told: were it to stop being owned
    /// here, a drain that had seen no mark before and nothing owned after would take the cut for complete.
    pub fn disown(&self, track: TrackNo) {
        self.image_lost(TrackRange::one(track));
    }

    /// Whether the drain still has to read a track that was given back, so that the write has to wait: then the waiter
    /// will be told. Noted first, then looked: whoever takes the track after the look lets its claim go after that.
    pub fn must_wait(&self, track: TrackNo, waiter: Waiter) -> bool {
        self.claims.note(waiter);
        self.out_of_sync().is_set(track) || self.claims.is_claimed(track)
    }

    /// Tracks owned by colliding writes whose content the drain does not have yet.
    pub fn owned(&self) -> u64 {
        self.owned.load(SeqCst)
    }

    /// The drain has the content of an owned track, or knows that it is lost.
    pub fn owner_handed_over(&self) {
        self.owned.fetch_sub(1, SeqCst);
    }

    /// The write is done: its second mark, then its count. Returns whether the drain has to be told to look: a cut may
    /// be waiting for the write, or the drain is asleep for want of marks.
    #[inline]
    #[expect(clippy::needless_pass_by_value, reason = "a ticket ends here")]
    pub fn finish(&self, ticket: Ticket, tracks: TrackRange) -> bool {
        if present(Bug::SecondMarkMoves) {
            let roles = self.roles();
            let after = self.epoch.number() >= roles.cut;
            let now =
                Ticket { structure: if after { roles.before.other() } else { roles.before }, queue: ticket.queue };
            self.mark(&now, tracks);
        } else if !present(Bug::NoSecondMark) {
            self.mark(&ticket, tracks);
        }
        self.in_flight[ticket.queue].0[ticket.structure.index()].fetch_sub(1, SeqCst);
        let roles = self.roles();
        ticket.structure == roles.before && self.epoch.number() >= roles.cut
            || roles.cut == NO_CUT && ticket.structure != roles.before && self.unfolded().is_some()
            || self.asleep.load(SeqCst) == 1 && self.asleep.swap(0, SeqCst) == 1
    }

    // An increment, in the order of its life. One thread, the one that runs the increment machine, calls these.

    /// Makes the volume part of the cut that the epoch `cut` begins. Nothing changes until the epoch word moves.
    ///
    /// The caller has made sure that no increment is under way and that the last one is folded.
    pub fn arm(&self, cut: u64) {
        let roles = self.roles();
        debug_assert!(
            roles.cut == NO_CUT && self.unfolded().is_none() && self.change_recording().count() == 0,
            "the spare is ready"
        );
        self.roles.store(Roles { cut, ..roles }.pack(), SeqCst);
    }

    /// The cut that the volume is after, if any.
    pub fn cut(&self) -> Option<u64> {
        let roles = self.roles();
        (self.epoch.number() >= roles.cut).then_some(roles.cut)
    }

    /// Whether every write that arrived before the cut has finished. With this OOS is frozen and complete.
    pub fn quiesced(&self) -> bool {
        let roles = self.roles();
        present(Bug::CutWithoutWaiting) || self.in_flight_on(roles.before) == 0
    }

    /// Whether writes are being held.
    pub fn holding(&self) -> bool {
        self.cut().is_some_and(|cut| self.released.load(SeqCst) < cut)
    }

    /// Lets the held writes go (seed 004 \[0041\]). The caller rings the queues' doorbells.
    pub fn release(&self) {
        let roles = self.roles();
        if roles.cut != NO_CUT {
            self.released.fetch_max(roles.cut, SeqCst);
        }
    }

    /// No track of the cut needs the primary any more.
    pub fn secure(&self, cut: u64) {
        self.secured.fetch_max(cut, SeqCst);
    }

    /// Ends the increment: what records now is what is out of sync from here on. Held writes go too; the caller rings
    /// the doorbells. What an aborted one left in the old OOS has to be folded in before the next can be armed.
    pub fn retire(&self, aborted: bool) {
        let roles = self.roles();
        if roles.cut == NO_CUT {
            return;
        }
        self.released.fetch_max(roles.cut, SeqCst);
        if present(Bug::RecordingDropped) && aborted {
            self.bitmap(roles.before.other()).clear_all();
        }
        // The roles first: a drain that saw the aborted cut and still the old roles would fold CR into the old OOS. The
        // caller tells the drain to look, so that it does not matter when it sees the second of the two.
        self.roles.store(Roles { cut: NO_CUT, before: roles.before.other() }.pack(), SeqCst);
        self.unfolded.store(if aborted { roles.cut } else { 0 }, SeqCst);
    }

    /// The aborted cut whose remains are still to be folded in, if any.
    pub fn unfolded(&self) -> Option<u64> {
        Some(self.unfolded.load(SeqCst)).filter(|cut| *cut != 0)
    }

    /// Moves what an aborted increment left in the spare into OOS, and says whether the spare is ready for the next
    /// cut: empty, with nobody left who would mark it again: a write in flight, or one that owns a track and gives it
    /// back to the OOS of before the abort. Called by the drain until it is.
    pub fn fold(&self) -> bool {
        let before = self.roles().before;
        let settled = self.in_flight_on(before.other()) == 0 && self.owned() == 0;
        let (oos, spare) = (self.bitmap(before), self.bitmap(before.other()));
        if spare.count() > 0 {
            spare.move_to(oos);
        }
        // `settled` was read before the marks were: a write that finished in between would otherwise be missed.
        let folded = settled && spare.count() == 0;
        if folded {
            self.unfolded.store(0, SeqCst);
        }
        folded
    }

    // The drain.

    /// Takes the longest run of tracks from `start` on, at most `max`, that are out of sync and that nobody has
    /// claimed: claims them and clears their marks. They must be read now and then given to [`Self::image_read`].
    ///
    /// Also says whether a claim was let go again: those who found it taken have to be told.
    pub fn take(&self, start: TrackNo, max: u64, wanted: impl Fn(TrackNo) -> bool) -> (TrackRange, bool) {
        let oos = self.out_of_sync();
        let mut range = TrackRange { start, count: 0 };
        self.in_hand(true);
        while range.count < max && range.end() < self.geometry.tracks() {
            let track = TrackNo(range.end());
            if !oos.is_set(track) || !wanted(track) || !self.claims.claim(track, Waiter::DRAIN) {
                break;
            }
            if !present(Bug::ClearAfterRead) && !oos.clear(track) {
                self.claims.release(track);
                return (range, true);
            }
            range.count += 1;
        }
        (range, false)
    }

    /// The drain has, or has no longer, contents that are neither marked nor durable at the secondary. Said before a
    /// mark is cleared, and taken back after everything is durable or marked again.
    pub fn in_hand(&self, something: bool) {
        self.in_hand.store(u64::from(something), SeqCst);
    }

    /// Whether the secondary is an exact, durable copy. Whatever is not is marked, owned or in the drain's hand, moves
    /// from the first to the last before it leaves the first, and back likewise: so the marks are looked at twice.
    pub fn in_sync(&self) -> bool {
        let unmarked = || self.out_of_sync().count() == 0 && self.change_recording().count() == 0;
        unmarked() && self.owned() == 0 && self.in_hand.load(SeqCst) == 0 && unmarked()
    }

    /// Whether a track of the run is marked in either structure. May say so of one that no longer is, or that never
    /// was, but never denies one that was marked all the while.
    pub fn any_marked(&self, tracks: TrackRange) -> bool {
        let before = (self.roles.load(SeqCst), self.epoch.number());
        // Folding moves marks from the spare to OOS and, while the roles stand, never back. The epoch besides: after
        // two increments the word of the roles is the same again.
        let marked = self.change_recording().any_set(tracks) || self.out_of_sync().any_set(tracks);
        marked || (self.roles.load(SeqCst), self.epoch.number()) != before
    }

    /// The content of the claimed tracks is in memory: others may write them.
    pub fn image_read(&self, tracks: TrackRange) {
        for track in tracks.iter() {
            if present(Bug::ClearAfterRead) {
                self.out_of_sync().clear(track);
            }
            self.claims.release(track);
        }
    }

    /// The claimed tracks could not be read: they are out of sync as before, and free to others (H15).
    pub fn image_lost(&self, tracks: TrackRange) {
        for track in tracks.iter() {
            // The mark before the claim goes, or a write after the cut could find neither.
            self.out_of_sync().set(track);
            self.claims.release(track);
        }
        self.put_back.fetch_add(1, SeqCst);
    }

    /// Puts tracks back out of sync whose copy did not reach the secondary.
    pub fn mark_out_of_sync(&self, tracks: TrackRange) {
        self.out_of_sync().set_run(tracks);
        self.put_back.fetch_add(1, SeqCst);
    }

    /// How often that was. Whoever finds it unchanged, after everything that the drain had in hand has ended, knows
    /// that all of it has arrived: of what was put back, the mark may be gone again, and the content in hand.
    pub fn put_back(&self) -> u64 {
        self.put_back.load(SeqCst)
    }

    /// The drain is about to sleep for want of marks: the next write that finishes has to wake it. To be followed by
    /// one more look at the marks: the drain looks after the word is set, and a write looks at the word after its mark.
    ///
    /// From the cut to the increment's end no write marks what the drain sends, and none has to wake it.
    pub fn doze(&self) {
        self.asleep.store(u64::from(self.cut().is_none()), SeqCst);
    }

    /// Writes in flight, of whatever epoch.
    pub fn in_flight(&self) -> u64 {
        self.in_flight_on(Structure(0)) + self.in_flight_on(Structure(1))
    }

    fn in_flight_on(&self, structure: Structure) -> u64 {
        self.in_flight.iter().map(|queue| u64::from(queue.0[structure.index()].load(SeqCst))).sum()
    }

    fn roles(&self) -> Roles {
        Roles::unpack(self.roles.load(SeqCst))
    }

    fn bitmap(&self, structure: Structure) -> &Bitmap {
        &self.structures[structure.index()]
    }
}
