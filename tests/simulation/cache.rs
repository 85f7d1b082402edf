//! The volatile cache of a simulated primary: what a write has put there survives a power cut for certain only after a
//! flush that was submitted later, or if the write asked for it.

use crate::checker::Stamp;
use crate::rng::Rng;
use std::collections::BTreeMap;

/// Whose flush it is: a queue and tag, or the drain.
pub type Flusher = Option<(usize, u16)>;

/// Which contents are durable.
#[derive(Debug)]
pub struct Cache {
    /// Per sector, how often it was written, and that number of the durable content.
    written: Vec<u32>,
    durable: Vec<(u32, Stamp)>,
    /// What the flushes under way cover.
    flushes: BTreeMap<Flusher, Vec<(usize, u32, Stamp)>>,
}

impl Cache {
    pub fn new(content: &[Stamp]) -> Self {
        Self {
            written: vec![0; content.len()],
            durable: content.iter().map(|stamp| (0, *stamp)).collect(),
            flushes: BTreeMap::new(),
        }
    }

    pub fn put(&mut self, sector: usize) {
        self.written[sector] += 1;
    }

    /// A flush is submitted: it covers what is there now.
    pub fn begin_flush(&mut self, flusher: Flusher, content: &[Stamp]) {
        let dirty = (0..content.len()).filter(|sector| self.durable[*sector].0 != self.written[*sector]);
        let covered = dirty.map(|sector| (sector, self.written[sector], content[sector])).collect();
        self.flushes.insert(flusher, covered);
    }

    pub fn end_flush(&mut self, flusher: Flusher, ok: bool) {
        for (sector, number, stamp) in self.flushes.remove(&flusher).unwrap_or_default() {
            if number > self.durable[sector].0 {
                // What a failed flush covered may be lost, and no later one says so again.
                let stamp = if ok { stamp } else { self.durable[sector].1 };
                self.durable[sector] = (number, stamp);
            }
        }
    }

    /// A flush was not even begun.
    pub fn turn_away(&mut self, flusher: (usize, u16)) {
        self.flushes.remove(&Some(flusher));
    }

    /// A write that asked to be durable is done.
    pub fn persist(&mut self, start: usize, count: usize, content: &[Stamp]) {
        for (sector, stamp) in content.iter().enumerate().skip(start).take(count) {
            self.durable[sector] = (self.written[sector], *stamp);
        }
    }

    /// What a power cut leaves: of each sector that is not durable the new content or the old.
    pub fn remains(&self, content: &[Stamp], rng: &mut Rng) -> Vec<Stamp> {
        let sectors = content.iter().zip(&self.durable).zip(&self.written);
        sectors
            .map(|((new, (number, kept)), written)| if number != written && rng.chance(1, 2) { *new } else { *kept })
            .collect()
    }
}
