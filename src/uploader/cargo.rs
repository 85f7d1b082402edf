//! What is on its way to the secondary: runs read from the primary, each in a slot of memory, and before-images, each
//! in a buffer of the pool. Bookkeeping only; it decides nothing.
//!
//! One rule lives here: of one track at most one content is on its way at a time, and a before-image that is waiting
//! keeps its track from being read again, so that an older content never lands after a newer one (H14).

use crate::geometry::{TrackNo, TrackRange};
use std::collections::{BTreeMap, HashSet, VecDeque};

/// Index of a run's memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct SlotNo(pub usize);

/// Name of a before-image, given by whoever keeps its memory.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct ImageNo(pub usize);

/// A part of a run that is written in one request: consecutive tracks, all zeroes or none.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Segment {
    pub tracks: TrackRange,
    pub zero: bool,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Slot {
    Free,
    /// Its tracks are claimed and being read.
    Reading(TrackRange),
    /// Read; `waiting` segments are to be sent, `sending` requests are under way.
    Sending {
        tracks: TrackRange,
        waiting: VecDeque<Segment>,
        sending: usize,
        /// The claims are kept until all of it is acknowledged (send first).
        claimed: bool,
    },
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum ImageState {
    Waiting,
    Sending,
}

/// Everything between the primary and the secondary.
#[derive(Debug, Clone)]
pub(super) struct Cargo {
    pub slots: Vec<Slot>,
    pub images: BTreeMap<ImageNo, (TrackNo, ImageState)>,
    /// Images to be sent, oldest first.
    pub queue: VecDeque<ImageNo>,
    /// Tracks with a content on its way.
    in_transit: HashSet<TrackNo>,
    /// Tracks with an image that waits.
    imaged: HashSet<TrackNo>,
    /// Per slot, the number of its run in the order of reading.
    serials: Vec<u64>,
    /// Of each image, a number of the same order.
    image_serials: BTreeMap<ImageNo, u64>,
    next_serial: u64,
    /// Per slot, when its run was taken.
    taken_ms: Vec<u64>,
}

impl Cargo {
    pub fn new(slots: usize) -> Self {
        Self {
            slots: vec![Slot::Free; slots],
            images: BTreeMap::new(),
            queue: VecDeque::new(),
            in_transit: HashSet::new(),
            imaged: HashSet::new(),
            serials: vec![0; slots],
            image_serials: BTreeMap::new(),
            next_serial: 0,
            taken_ms: vec![0; slots],
        }
    }

    /// Whether a content of the track is on its way or waits to be.
    pub fn has(&self, track: TrackNo) -> bool {
        self.in_transit.contains(&track) || self.imaged.contains(&track)
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.slots.iter().all(|slot| *slot == Slot::Free)
    }

    pub fn free_slot(&self) -> Option<SlotNo> {
        self.slots.iter().position(|slot| *slot == Slot::Free).map(SlotNo)
    }

    /// Slots in use and images being sent: the requests that the window bounds.
    pub fn under_way(&self) -> usize {
        let slots = self.slots.iter().filter(|slot| **slot != Slot::Free).count();
        slots + self.images.values().filter(|(_, state)| *state == ImageState::Sending).count()
    }

    /// Everything in slots and images.
    pub fn all_tracks(&self) -> Vec<TrackRange> {
        let slots = self.slots.iter().filter_map(|slot| match slot {
            Slot::Free => None,
            Slot::Reading(tracks) | Slot::Sending { tracks, .. } => Some(*tracks),
        });
        slots.chain(self.images.values().map(|(track, _)| TrackRange::one(*track))).collect()
    }

    /// The tracks of requests to the secondary that are under way.
    pub fn being_sent(&self) -> impl Iterator<Item = TrackRange> {
        let slots = self.slots.iter().filter_map(|slot| match slot {
            Slot::Sending { tracks, sending: 1.., .. } => Some(*tracks),
            _ => None,
        });
        let images = self.images.values().filter(|(_, state)| *state == ImageState::Sending);
        slots.chain(images.map(|(track, _)| TrackRange::one(*track)))
    }

    /// Number of tracks in slots and images.
    pub fn tracks(&self) -> u64 {
        let slots = self.slots.iter().map(|slot| match slot {
            Slot::Free => 0,
            Slot::Reading(tracks) | Slot::Sending { tracks, .. } => tracks.count,
        });
        slots.sum::<u64>() + self.images.len() as u64
    }

    pub fn begin_read(&mut self, slot: SlotNo, tracks: TrackRange, now_ms: u64) {
        self.slots[slot.0] = Slot::Reading(tracks);
        self.taken_ms[slot.0] = now_ms;
        self.serials[slot.0] = self.next_serial;
        self.next_serial += 1;
        self.in_transit.extend(tracks.iter());
    }

    /// The run is read; cut into segments by which of its tracks are zero.
    pub fn read(&mut self, slot: SlotNo, claimed: bool, zero: impl Fn(TrackNo) -> bool) {
        let Slot::Reading(tracks) = self.slots[slot.0] else { return };
        let mut waiting: VecDeque<Segment> = VecDeque::new();
        for track in tracks.iter() {
            match waiting.back_mut() {
                Some(last) if last.zero == zero(track) => last.tracks.count += 1,
                _ => waiting.push_back(Segment { tracks: TrackRange::one(track), zero: zero(track) }),
            }
        }
        self.slots[slot.0] = Slot::Sending { tracks, waiting, sending: 0, claimed };
    }

    /// Ends the slot's life and frees its tracks.
    pub fn end(&mut self, slot: SlotNo) {
        match std::mem::replace(&mut self.slots[slot.0], Slot::Free) {
            Slot::Free => {}
            Slot::Reading(tracks) | Slot::Sending { tracks, .. } => {
                for track in tracks.iter() {
                    self.in_transit.remove(&track);
                }
            }
        }
    }

    pub fn add_image(&mut self, image: ImageNo, track: TrackNo) {
        self.images.insert(image, (track, ImageState::Waiting));
        self.queue.push_back(image);
        self.image_serials.insert(image, self.next_serial);
        self.next_serial += 1;
        self.imaged.insert(track);
    }

    /// The first waiting image whose track has nothing else on its way; it is on its way now.
    pub fn begin_image(&mut self) -> Option<(ImageNo, TrackNo)> {
        let place = self
            .queue
            .iter()
            .position(|image| self.images.get(image).is_some_and(|(track, _)| !self.in_transit.contains(track)))?;
        let image = self.queue.remove(place)?;
        let (track, state) = self.images.get_mut(&image)?;
        *state = ImageState::Sending;
        self.imaged.remove(track);
        self.in_transit.insert(*track);
        Some((image, *track))
    }

    /// The image's send failed: it waits again, before the others.
    pub fn image_again(&mut self, image: ImageNo) {
        if let Some((track, state)) = self.images.get_mut(&image) {
            *state = ImageState::Waiting;
            self.in_transit.remove(track);
            self.imaged.insert(*track);
            self.queue.push_front(image);
        }
    }

    /// Ends the image's life.
    pub fn end_image(&mut self, image: ImageNo) -> Option<TrackNo> {
        let (track, state) = self.images.remove(&image)?;
        self.image_serials.remove(&image);
        match state {
            ImageState::Sending => self.in_transit.remove(&track),
            ImageState::Waiting => self.imaged.remove(&track),
        };
        self.queue.retain(|other| *other != image);
        Some(track)
    }

    /// When the oldest run under way was taken: a mark that stands on one of its tracks is younger.
    pub fn oldest_taken_ms(&self) -> Option<u64> {
        let busy = self.slots.iter().zip(&self.taken_ms).filter(|(slot, _)| **slot != Slot::Free);
        busy.map(|(_, taken)| *taken).min()
    }

    /// A request failed: marks were put back that are older than the runs under way on their tracks.
    pub fn forget_ages(&mut self) {
        self.taken_ms.fill(0);
    }

    /// Whether a before-image of the track waits or is being sent: how old a mark of the track is says neither.
    pub fn has_image(&self, track: TrackNo) -> bool {
        self.images.values().any(|(of, _)| *of == track)
    }

    /// Serial number of the oldest run or image that is not acknowledged yet; without any, the one that the next will
    /// get.
    pub fn oldest_serial(&self) -> u64 {
        self.image_serials.values().copied().fold(self.serials().1, u64::min)
    }

    /// Serial number that the next run will get, and the oldest one that is not acknowledged yet.
    pub fn serials(&self) -> (u64, u64) {
        let busy = self.slots.iter().zip(&self.serials).filter(|(slot, _)| **slot != Slot::Free);
        (self.next_serial, busy.map(|(_, serial)| *serial).min().unwrap_or(self.next_serial))
    }
}
