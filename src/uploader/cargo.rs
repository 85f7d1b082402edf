//! What is on its way to the secondary: runs read from the primary, each in a slot of memory, and before-images, each
//! in a buffer of the pool. Bookkeeping only; it decides nothing.
//!
//! One rule lives here: of one track at most one content is on its way at a time, and a before-image that is waiting
//! keeps its track from being read again, so that an older content never lands after a newer one (H14).

use crate::geometry::{TrackNo, TrackRange};
use std::collections::hash_map::Entry;
use std::collections::{BTreeMap, BTreeSet, HashMap, HashSet, VecDeque};

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
    queue: VecDeque<ImageNo>,
    /// Images that came up while another content of their track was on its way: they go when that has arrived.
    behind: HashMap<TrackNo, VecDeque<ImageNo>>,
    /// Tracks with a content on its way, and those of them whose content is an image.
    in_transit: HashSet<TrackNo>,
    images_in_transit: HashSet<TrackNo>,
    /// Tracks with images that wait, and how many.
    imaged: HashMap<TrackNo, usize>,
    /// Requests to the secondary under way that send parts of runs.
    sending: usize,
    /// Per slot, the number of its run in the order of reading.
    serials: Vec<u64>,
    /// Of each image, a number of the same order; and these numbers, in order.
    image_serials: HashMap<ImageNo, u64>,
    image_order: BTreeSet<u64>,
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
            behind: HashMap::new(),
            in_transit: HashSet::new(),
            images_in_transit: HashSet::new(),
            imaged: HashMap::new(),
            sending: 0,
            serials: vec![0; slots],
            image_serials: HashMap::new(),
            image_order: BTreeSet::new(),
            next_serial: 0,
            taken_ms: vec![0; slots],
        }
    }

    /// Whether a content of the track is on its way or waits to be.
    pub fn has(&self, track: TrackNo) -> bool {
        self.in_transit.contains(&track) || self.imaged.contains_key(&track)
    }

    pub fn is_empty(&self) -> bool {
        self.images.is_empty() && self.slots.iter().all(|slot| *slot == Slot::Free)
    }

    pub fn free_slot(&self) -> Option<SlotNo> {
        self.slots.iter().position(|slot| *slot == Slot::Free).map(SlotNo)
    }

    /// Requests under way, to the primary and to the secondary: what the window bounds. There may be millions of
    /// images, and this is asked at every step: none of them is looked at.
    pub fn under_way(&self) -> usize {
        let reading = self.slots.iter().filter(|slot| matches!(slot, Slot::Reading(_))).count();
        reading + self.sending + self.images_in_transit.len()
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
        slots.chain(self.images_in_transit.iter().map(|track| TrackRange::one(*track)))
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

    /// The first segment that waits; it is on its way now.
    pub fn begin_segment(&mut self) -> Option<(SlotNo, Segment)> {
        let begun = self.slots.iter_mut().enumerate().find_map(|(index, slot)| match slot {
            Slot::Sending { waiting, sending, .. } => {
                let segment = waiting.pop_front()?;
                *sending += 1;
                Some((SlotNo(index), segment))
            }
            _ => None,
        })?;
        self.sending += 1;
        Some(begun)
    }

    /// A segment has arrived, or not: then it waits `again`, before the others, or is given up.
    pub fn end_segment(&mut self, slot: SlotNo, segment: Segment, again: bool) {
        let Slot::Sending { waiting, sending, .. } = &mut self.slots[slot.0] else { return };
        *sending -= 1;
        self.sending -= 1;
        if again {
            waiting.push_front(segment);
        }
    }

    /// Ends the slot's life and frees its tracks.
    pub fn end(&mut self, slot: SlotNo) {
        match std::mem::replace(&mut self.slots[slot.0], Slot::Free) {
            Slot::Free => {}
            Slot::Reading(tracks) | Slot::Sending { tracks, .. } => {
                for track in tracks.iter() {
                    self.arrived(track);
                }
            }
        }
    }

    /// No content of the track is on its way any more: images that came up behind it are next.
    fn arrived(&mut self, track: TrackNo) {
        self.in_transit.remove(&track);
        if !self.behind.is_empty()
            && let Some(images) = self.behind.remove(&track)
        {
            for image in images.into_iter().rev() {
                self.queue.push_front(image);
            }
        }
    }

    pub fn add_image(&mut self, image: ImageNo, track: TrackNo) {
        self.images.insert(image, (track, ImageState::Waiting));
        self.queue.push_back(image);
        self.image_serials.insert(image, self.next_serial);
        self.image_order.insert(self.next_serial);
        self.next_serial += 1;
        *self.imaged.entry(track).or_insert(0) += 1;
    }

    /// The first waiting image whose track has nothing else on its way; it is on its way now. An image is set aside
    /// once for each content that is before it, and never searched for.
    pub fn begin_image(&mut self) -> Option<(ImageNo, TrackNo)> {
        while let Some(image) = self.queue.pop_front() {
            let Some((track, state)) = self.images.get_mut(&image) else { continue };
            let track = *track;
            if self.in_transit.contains(&track) {
                self.behind.entry(track).or_default().push_back(image);
                continue;
            }
            *state = ImageState::Sending;
            self.waits_no_more(track);
            self.in_transit.insert(track);
            self.images_in_transit.insert(track);
            return Some((image, track));
        }
        None
    }

    fn waits_no_more(&mut self, track: TrackNo) {
        if let Entry::Occupied(mut images) = self.imaged.entry(track) {
            *images.get_mut() -= 1;
            if *images.get() == 0 {
                images.remove();
            }
        }
    }

    /// The image's send failed: it waits again, before the others.
    pub fn image_again(&mut self, image: ImageNo) {
        if let Some((track, state)) = self.images.get_mut(&image) {
            let track = *track;
            *state = ImageState::Waiting;
            *self.imaged.entry(track).or_insert(0) += 1;
            self.images_in_transit.remove(&track);
            self.arrived(track);
            self.queue.push_front(image);
        }
    }

    /// The image has been sent, or is given up while it is: its life ends.
    pub fn end_image(&mut self, image: ImageNo) {
        if let Some((track, ImageState::Sending)) = self.images.remove(&image) {
            self.images_in_transit.remove(&track);
            self.arrived(track);
        }
        self.forget_serial(image);
    }

    fn forget_serial(&mut self, image: ImageNo) {
        if let Some(serial) = self.image_serials.remove(&image) {
            self.image_order.remove(&serial);
        }
    }

    /// Ends the life of every image that waits, and names them.
    pub fn give_up_images(&mut self) -> Vec<ImageNo> {
        let behind = std::mem::take(&mut self.behind).into_values().flatten();
        let waiting: Vec<ImageNo> = std::mem::take(&mut self.queue).into_iter().chain(behind).collect();
        for image in &waiting {
            self.images.remove(image);
            self.forget_serial(*image);
        }
        self.imaged.clear();
        waiting
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
        self.imaged.contains_key(&track) || self.images_in_transit.contains(&track)
    }

    /// Serial number of the oldest run or image that is not acknowledged yet; without any, the one that the next will
    /// get.
    pub fn oldest_serial(&self) -> u64 {
        self.image_order.first().copied().unwrap_or(u64::MAX).min(self.serials().1)
    }

    /// Serial number that the next run will get, and the oldest one that is not acknowledged yet.
    pub fn serials(&self) -> (u64, u64) {
        let busy = self.slots.iter().zip(&self.serials).filter(|(slot, _)| **slot != Slot::Free);
        (self.next_serial, busy.map(|(_, serial)| *serial).min().unwrap_or(self.next_serial))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn of_very_many_images_none_is_looked_at_for_another() {
        // Were each searched for among the others, this would not end.
        const IMAGES: usize = 300_000;
        let track = |image: usize| TrackNo(image as u64);
        let mut cargo = Cargo::new(16);
        (0..IMAGES).for_each(|image| cargo.add_image(ImageNo(image), track(image)));
        for image in 0..IMAGES {
            assert_eq!(cargo.begin_image(), Some((ImageNo(image), track(image))));
            assert_eq!(cargo.under_way(), 1);
            assert!(cargo.has_image(track(image)) && cargo.has(track(image)));
            cargo.end_image(ImageNo(image));
            assert!(!cargo.has_image(track(image)) && !cargo.has(track(image)));
        }
        assert!(cargo.is_empty() && cargo.begin_image().is_none());
    }

    #[test]
    fn an_image_goes_behind_what_is_on_its_way_and_before_what_came_later() {
        let (one, two) = (TrackNo(1), TrackNo(2));
        let mut cargo = Cargo::new(1);
        cargo.begin_read(SlotNo(0), TrackRange::one(one), 0);
        (0..3).for_each(|image| cargo.add_image(ImageNo(image), if image == 1 { two } else { one }));
        assert_eq!(cargo.begin_image(), Some((ImageNo(1), two)));
        assert_eq!(cargo.begin_image(), None);
        cargo.end(SlotNo(0));
        assert_eq!(cargo.begin_image(), Some((ImageNo(0), one)));
        assert_eq!(cargo.begin_image(), None);
        cargo.image_again(ImageNo(0));
        assert_eq!(cargo.begin_image(), Some((ImageNo(0), one)));
        cargo.end_image(ImageNo(0));
        assert!(cargo.has(one), "one more image of it waits");
        assert_eq!(cargo.give_up_images(), [ImageNo(2)]);
        assert!(!cargo.has(one) && cargo.has(two));
    }
}
