//! Power fails at every write, with that write torn at every sector, and with what was not flushed lost or there.

use std::collections::BTreeSet;

use super::disk::{SECTOR, Step};
use super::history::{Life, Moment, assert_starts, few, many};

/// A disk of which it is known what is durable and what may be.
struct Replay {
    durable: Vec<u8>,
    /// Written since the last flush, in order.
    pending: Vec<(usize, Vec<u8>)>,
}

impl Replay {
    fn with_pending(&self) -> Vec<u8> {
        let mut content = self.durable.clone();
        for (offset, bytes) in &self.pending {
            content[*offset..offset + bytes.len()].copy_from_slice(bytes);
        }
        content
    }

    fn apply(&mut self, step: &Step) {
        match step {
            Step::Write { offset, bytes, durable: true } => {
                self.durable[*offset..offset + bytes.len()].copy_from_slice(bytes);
            }
            Step::Write { offset, bytes, durable: false } => self.pending.push((*offset, bytes.clone())),
            Step::Flush => {
                self.durable = self.with_pending();
                self.pending.clear();
            }
        }
    }
}

/// Cuts the life off at every moment; `sectors`: how many sectors apart the tears are.
fn cut_everywhere(content: Vec<u8>, moments: &[Moment], sectors: usize) -> usize {
    let mut replay = Replay { durable: content, pending: Vec::new() };
    let mut cuts = 0;
    for (number, (step, truth)) in moments.iter().enumerate() {
        for base in BTreeSet::from([replay.durable.clone(), replay.with_pending()]) {
            let Step::Write { offset, bytes, .. } = step else { continue };
            for torn in (0..=bytes.len() / SECTOR).step_by(sectors) {
                let torn = torn * SECTOR;
                let what = |which: &'static str| move || format!("write {number} at {offset}, {which} {torn} bytes");
                let mut first = base.clone();
                first[*offset..offset + torn].copy_from_slice(&bytes[..torn]);
                assert_starts(first, truth, &what("first"));
                let mut last = base.clone();
                last[offset + torn..offset + bytes.len()].copy_from_slice(&bytes[torn..]);
                assert_starts(last, truth, &what("all but the first"));
                cuts += 2;
            }
        }
        replay.apply(step);
    }
    let truth = &moments.last().expect("something was done").1;
    assert_starts(replay.durable, truth, &|| "the end".to_owned());
    cuts
}

#[test]
fn every_write_torn_at_every_sector_leaves_a_superset() {
    let mut life = Life::new();
    life.live(&few()).expect("nothing fails");
    let cuts = cut_everywhere(Life::zeroes(), &life.moments(), 1);
    assert!(cuts > 500, "{cuts}");
}

#[test]
fn a_long_save_area_torn_anywhere_leaves_a_superset() {
    let mut life = Life::new();
    life.live(&many()).expect("nothing fails");
    cut_everywhere(Life::zeroes(), &life.moments(), 3);
}

#[test]
fn formatting_over_an_older_volume_never_mixes_the_two() {
    let mut old = Life::new();
    old.live(&few()).expect("nothing fails");
    let content = old.disk.content();
    let mut life = Life::over(content.clone());
    life.live(&few()).expect("nothing fails");
    // Until the new volume is there, the old one's truth holds if anything is found at all.
    cut_everywhere(content, &life.moments(), 1);
}
