//! Decides what is written to the intent on media, and when. Pure: messages and answers in, operations and wake-ups
//! out; `volume`'s metadata thread, the queues, or the simulation carry them out.
//!
//! What it keeps true:
//! * a region is hot in memory only if every page that media may show has its bit, or a record of the log that counts
//!   until then names it: a bit is durable when a write that was submitted after it was set is done, and at most one
//!   write of a page is under way (H1, H4);
//! * a bit is cleared only for a region without pins, without a mark in either structure, and with everything that was
//!   on its way from it at the secondary and flushed there (H3, H7);
//! * a failed write is final: nothing becomes hot and nothing is cleared any more (H9).
//!
//! **Clearing a region**, step by step: remember how often tracks were put back out of sync; cool it, which a pin
//! prevents; look for marks; ask the drain for a grace, which it gives when everything it had in hand at that moment is
//! durable or put back; look whether anything was put back since the first step, and give up if so; look for marks once
//! more; write the page without it. What was put back may have been taken again, so that to look for its mark is not
//! enough, and that may have been before the drain heard of the grace. A write that comes in between gets its region
//! back at once, without a record, as long as no page without it was submitted.

use super::log::{Log, LogStart, Record};
use super::message::Message;
use super::page::{Page, PageNo};
use super::queues::Queues;
use super::regions::{RegionNo, RegionRange, Regions};
use super::sweep::Sweep;
use crate::bugs::{Bug, present};
use crate::tracking::Tracking;
use std::collections::{BTreeSet, VecDeque};
use std::ops::{Bound, Range};

/// Regions marked ahead that it listens to; the oldest are forgotten, which costs a writer a wait.
const LISTENING_MAX: usize = 64;
/// How far the hand goes at a time, in hot regions and pages, and how long it rests then, in milliseconds: going round
/// a volume of which everything is hot, through its first copy say, takes a quarter of a second for each TiB and next
/// to no time of the processor. Writes to cold regions wait for the end of a stretch, so it is a short one.
const VISITS_MAX: u32 = 1024;
const REST_MS: u64 = 1;
/// Most regions that a record names.
pub const RECORD_REGIONS_MAX: usize = 500;
/// Regions that were cooled are not kept longer than this before they are cleared, in milliseconds.
const GATHER_MS: u64 = 1000;

/// Bounds of a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Most regions that are hot with nothing out of sync. One with marks has to stay hot, however many there are.
    pub hot_max: u64,
    /// A region not used for this long is cleared, in milliseconds; between once and twice as long.
    pub idle_ms: u64,
    /// Regions marked ahead of a sequential writer; 0 for none.
    pub ahead: u64,
    /// Most regions cleared with one grace.
    pub batch: usize,
    /// After a failed write of the metadata writes to cold regions wait instead of failing.
    pub suspend: bool,
}

/// Something to write.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Write {
    /// The page as [`Keeper::page`] shows it at this moment.
    Page(PageNo),
    /// The record of this number, as [`Keeper::record`] shows it; several at a time, in any order.
    Record(u64),
}

/// Something to carry out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Op {
    /// Write this, durably; answer with [`Keeper::written`].
    Write(Write),
    /// Ask the drain for a grace; [`Message::Graced`] is its answer.
    Grace(u64),
}

/// What the keeper says of itself, for status reports.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Figures {
    /// Regions that media shows hot, or will with the next write.
    pub hot: u64,
    pub page_writes: u64,
    pub records: u64,
    /// Writes that had to wait for their intent.
    pub waited: u64,
    pub marked_ahead: u64,
    pub cleared: u64,
    pub failed: bool,
}

/// Keeps the intent of one volume.
#[derive(Debug)]
pub struct Keeper {
    limits: Limits,
    regions_per_page: u64,
    pages: Box<[Page]>,
    /// Newly hot regions that no record names yet, and their pages; and memory for those that the next ones name.
    wanted: Vec<(RegionNo, PageNo)>,
    named: Vec<Vec<RegionNo>>,
    /// Pages that have to be written, and the one that was written last.
    dirty: BTreeSet<PageNo>,
    last: PageNo,
    log: Log,
    /// How many pages are to be written so that records need not count any more, and how many are being written.
    due: usize,
    under_way: usize,
    waiting: Vec<(usize, RegionRange)>,
    listening: VecDeque<RegionNo>,
    sweep: Sweep,
    /// Cooled, with their bits still set; and the grace that was asked for them.
    cooled: Vec<RegionNo>,
    grace: Option<u64>,
    graces: u64,
    /// The primary may have lost what it acknowledged: nothing is cleared any more.
    doubt: bool,
    /// How often tracks had been put back before the first of them was cooled, and when that was.
    put_back: u64,
    cooled_ms: u64,
    wakes: Queues,
    figures: Figures,
}

impl Keeper {
    /// `hot`: the runs of regions that the pages on media show hot. Makes the same regions hot in memory.
    pub fn new(
        limits: Limits,
        regions: &Regions,
        regions_per_page: u64,
        hot: impl IntoIterator<Item = Range<u64>>,
        log: LogStart,
    ) -> Self {
        let count = regions.count();
        let page = |page: u64| {
            let first = page * regions_per_page;
            Page::new(RegionNo(first), regions_per_page.min(count - first))
        };
        let mut keeper = Self {
            limits,
            regions_per_page,
            pages: (0..count.div_ceil(regions_per_page)).map(page).collect(),
            wanted: Vec::new(),
            named: Vec::new(),
            dirty: BTreeSet::new(),
            last: PageNo(0),
            log: Log::new(log),
            due: 0,
            under_way: 0,
            waiting: Vec::new(),
            listening: VecDeque::with_capacity(LISTENING_MAX),
            sweep: Sweep::new(limits.idle_ms),
            cooled: Vec::with_capacity(limits.batch),
            grace: None,
            graces: 0,
            doubt: false,
            put_back: 0,
            cooled_ms: 0,
            wakes: Queues::default(),
            figures: Figures::default(),
        };
        for region in hot.into_iter().flatten().map(RegionNo) {
            keeper.page_mut(region).set(region, true);
            keeper.figures.hot += 1;
            regions.heat(region);
        }
        keeper
    }

    pub fn figures(&self) -> Figures {
        self.figures
    }

    /// The bits of a page, the first region's lowest; words that are missing are zero.
    pub fn page(&self, page: PageNo) -> &[u64] {
        self.pages[place(page)].words()
    }

    /// A record under way.
    pub fn record(&self, number: u64) -> Option<&Record> {
        self.log.writing(number)
    }

    fn page_of(&self, region: RegionNo) -> PageNo {
        PageNo(region.0 / self.regions_per_page)
    }

    fn page_mut(&mut self, region: RegionNo) -> &mut Page {
        &mut self.pages[place(self.page_of(region))]
    }

    /// Queues to be rung now: what one of their writes waited for has come about.
    pub fn take_wakes(&mut self) -> Queues {
        std::mem::take(&mut self.wakes)
    }

    // What others tell it.

    pub fn tell(&mut self, message: Message, regions: &Regions, tracking: &Tracking) {
        match message {
            Message::Want { queue, regions: wanted } => self.want(queue, wanted, regions),
            Message::Graced { id, durable } => self.graced(id, durable, regions, tracking),
            Message::Written { record, ok } => self.written(Write::Record(record), ok, regions),
            Message::Look | Message::Stop => {}
        }
    }

    fn want(&mut self, queue: usize, wanted: RegionRange, regions: &Regions) {
        self.figures.waited += 1;
        for region in wanted.iter() {
            self.set(region, regions);
        }
        // Somebody who has come through the two regions before will go on to the next. One alone is met by chance.
        let came_through = |region: u64| regions.is_hot(RegionNo(region)) && regions.is_used(RegionNo(region));
        if wanted.start.0 >= 2 && (wanted.start.0 - 2..wanted.start.0).all(came_through) {
            self.mark_ahead(RegionNo(wanted.end()), self.limits.ahead, regions);
        }
        // What this has heated nobody else waits for: whoever wanted it before had it heated then.
        if self.figures.failed || regions.all_hot(wanted) {
            self.wakes.add(queue);
        } else {
            self.waiting.push((queue, wanted));
        }
    }

    /// The region is to be hot: at once if no page without it was submitted, else with a record.
    fn set(&mut self, region: RegionNo, regions: &Regions) {
        if regions.is_hot(region) || self.figures.failed {
            return;
        }
        let number = self.page_of(region);
        let page = &mut self.pages[place(number)];
        if page.is_set(region) {
            if let Some(at) = self.cooled.iter().position(|cooled| *cooled == region) {
                self.cooled.swap_remove(at);
                regions.heat(region);
            }
            return;
        }
        page.set(region, true);
        if let Some(at) = page.clearing.iter().position(|clearing| *clearing == region) {
            page.clearing.swap_remove(at);
            let dirty = page.is_dirty();
            regions.heat(region);
            if !dirty {
                self.dirty.remove(&number);
            }
        } else if present(Bug::PageWriteSkipped) && page.cleared_by_write.contains(&region) {
            regions.heat(region);
        } else {
            self.wanted.push((region, number));
        }
        self.figures.hot += 1;
    }

    /// Marks the regions from `start` on, and listens for the writer to be half way through them.
    fn mark_ahead(&mut self, start: RegionNo, count: u64, regions: &Regions) {
        let end = (start.0 + count).min(regions.count());
        let (hot, mut all_hot) = (self.figures.hot, true);
        for region in (start.0..end).map(RegionNo).filter(|region| !regions.is_hot(*region)) {
            all_hot = false;
            self.set(region, regions);
        }
        if all_hot {
            return;
        }
        // Those that are being written already count once.
        self.figures.marked_ahead += self.figures.hot - hot;
        if self.listening.len() == LISTENING_MAX
            && let Some(oldest) = self.listening.pop_front()
        {
            regions.set_ahead(oldest, false);
        }
        let middle = RegionNo(start.0 + (end - start.0) / 2);
        regions.set_ahead(middle, true);
        self.listening.push_back(middle);
    }

    /// A writer that has reached the middle of what was marked ahead of it gets the next, without a wait.
    fn listen(&mut self, regions: &Regions) {
        for _ in 0..self.listening.len() {
            let Some(region) = self.listening.pop_front() else { return };
            if regions.is_ahead(region) {
                self.listening.push_back(region);
            } else if !self.figures.failed {
                let next = RegionNo(region.0 + self.limits.ahead - self.limits.ahead / 2);
                self.mark_ahead(next, self.limits.ahead, regions);
            }
        }
    }

    /// Rings for every write whose regions are all hot, or never will be.
    fn settle(&mut self, regions: &Regions) {
        let (wakes, failed) = (&mut self.wakes, self.figures.failed);
        self.waiting.retain(|(queue, wanted)| {
            let done = failed || regions.all_hot(*wanted);
            if done {
                wakes.add(*queue);
            }
            !done
        });
    }

    // What to do next.

    /// The next operation, or nothing until a message or an answer comes, or [`Self::wake_at`]. To be asked until it
    /// says nothing.
    pub fn poll(&mut self, now_ms: u64, regions: &Regions, tracking: &Tracking) -> Option<Op> {
        if self.figures.failed {
            return None;
        }
        self.listen(regions);
        if let Some(record) = self.poll_waited() {
            return Some(Op::Write(Write::Record(record)));
        }
        if let Some(page) = self.next_write() {
            return Some(Op::Write(self.begin_write(page)));
        }
        if self.log.is_stale() {
            return Some(Op::Write(Write::Record(self.begin_record())));
        }
        self.doubt = regions.is_in_doubt();
        if self.grace.is_some() || self.doubt {
            return None;
        }
        if self.sweep.rests() {
            self.sweep.begin(now_ms, regions.count(), self.excess(), self.limits.idle_ms);
        }
        if now_ms >= self.sweep.goes_on_ms {
            self.go_round(now_ms, regions, tracking);
        }
        let gathers = self.cooled.len() < self.limits.batch && now_ms < self.cooled_ms + GATHER_MS;
        if self.cooled.is_empty() || gathers && !self.sweep.rests() {
            return None;
        }
        self.graces += 1;
        self.grace = Some(self.graces);
        Some(Op::Grace(self.graces))
    }

    /// Begins the record that host writes wait for next. For whoever has such a host write in hand and would
    /// otherwise have to wake somebody; the rest is [`Self::poll`]'s.
    pub fn poll_waited(&mut self) -> Option<u64> {
        let is_next = !self.figures.failed && self.log.has_room() && !self.wanted.is_empty();
        is_next.then(|| self.begin_record())
    }

    /// Whether there is something for [`Self::poll`] now, besides what will be once a record is durable, and what
    /// [`Self::poll_waited`] would have said.
    pub fn has_work(&self, now_ms: u64) -> bool {
        let due = || self.due_ms().is_some_and(|due_ms| due_ms <= now_ms);
        !self.figures.failed && (self.next_write().is_some() || self.log.is_stale() || due())
    }

    /// When to ask again although nothing came.
    pub fn wake_at(&self, now_ms: u64) -> Option<u64> {
        self.due_ms().map(|due_ms| due_ms.max(now_ms + 1))
    }

    fn due_ms(&self) -> Option<u64> {
        if self.figures.failed || self.doubt || self.grace.is_some() || self.figures.hot == 0 {
            return None;
        }
        Some(if self.sweep.rests() { self.sweep.due_ms(self.excess()) } else { self.sweep.goes_on_ms })
    }

    fn is_busy(&self, page: PageNo) -> bool {
        self.pages[place(page)].writing && !present(Bug::TwoWritesOfAPage)
    }

    fn excess(&self) -> u64 {
        self.figures.hot.saturating_sub(self.limits.hot_max)
    }

    /// A page to be written that is not being written (H4): one that keeps the log full before one that only clears.
    /// They take turns, or a page further up could wait for as long as there are cold writes further down.
    fn next_write(&self) -> Option<PageNo> {
        let page = |number: PageNo| &self.pages[place(number)];
        let in_turn = || {
            let behind = self.dirty.range((Bound::Excluded(self.last), Bound::Unbounded));
            behind.chain(self.dirty.range(..=self.last)).copied().filter(|page| !self.is_busy(*page))
        };
        let first = if self.log.is_full() { in_turn().find(|number| page(*number).due) } else { None };
        first.or_else(|| in_turn().next())
    }

    fn begin_write(&mut self, number: PageNo) -> Write {
        let page = &mut self.pages[place(number)];
        self.due -= usize::from(page.due);
        page.begin_write();
        self.under_way += 1;
        self.dirty.remove(&number);
        self.last = number;
        self.figures.page_writes += 1;
        if present(Bug::RecordLetGoEarly) {
            self.settle_log();
        }
        Write::Page(number)
    }

    /// What was submitted is durable, or could not be written.
    pub fn written(&mut self, write: Write, ok: bool, regions: &Regions) {
        match write {
            // After a failure also what is said to be durable: of two that flush one device, one may have taken the
            // error that was the other's.
            _ if !ok || self.figures.failed => return self.fail(regions),
            Write::Record(number) => {
                let mut named = self.log.end(number);
                named.drain(..).for_each(|region| regions.heat(region));
                self.named.push(named);
            }
            Write::Page(number) => {
                let page = &mut self.pages[place(number)];
                if !page.cleared_by_write.is_empty() {
                    self.log.note_cleared();
                }
                page.end_write();
                self.under_way -= 1;
                self.settle_log();
                self.make_room();
            }
        }
        self.settle(regions);
    }

    fn settle_log(&mut self) {
        let pages = &self.pages;
        self.log.settle(|page| pages[place(page)].needed());
    }

    /// A record of the regions that are wanted, as many as it holds; their pages need not be written for them.
    fn begin_record(&mut self) -> u64 {
        let (number, mut named) = (self.log.next(), self.named.pop().unwrap_or_default());
        for (region, page) in self.wanted.drain(..self.wanted.len().min(RECORD_REGIONS_MAX)) {
            named.push(region);
            if self.pages[place(page)].log(number) {
                self.log.stands_in_for(page);
            }
        }
        self.log.begin(named);
        self.figures.records += 1;
        self.make_room();
        number
    }

    /// Not while pages are written: most of what keeps the log full goes with them.
    fn make_room(&mut self) {
        if self.due == 0 && self.under_way == 0 && self.log.is_pressed() {
            self.write_logged_pages();
        }
    }

    /// The pages that records stand in for are to be written, so that none of these records counts any more. Those that
    /// are being written already go with that.
    fn write_logged_pages(&mut self) {
        for number in self.log.pages() {
            let page = &mut self.pages[place(number)];
            if page.is_logged() && !std::mem::replace(&mut page.due, true) {
                self.due += 1;
                self.dirty.insert(number);
            }
        }
    }

    /// Whether a page or a record is being written.
    pub fn is_writing(&self) -> bool {
        self.log.is_writing() || self.under_way > 0
    }

    /// What media shows for certain stays hot, nothing else ever will be.
    fn fail(&mut self, regions: &Regions) {
        self.figures.failed = true;
        regions.fail(self.limits.suspend);
        for region in std::mem::take(&mut self.cooled) {
            regions.heat(region);
        }
        for page in &mut self.pages {
            for region in page.clearing.drain(..) {
                regions.heat(region);
            }
        }
        self.settle(regions);
    }

    // Clearing.

    /// Goes round, a little, and cools what was not used and holds no mark.
    fn go_round(&mut self, now_ms: u64, regions: &Regions, tracking: &Tracking) {
        let count = regions.count();
        for _ in 0..VISITS_MAX {
            if self.sweep.rests() || self.cooled.len() >= self.limits.batch {
                return;
            }
            let page = self.page_of(self.sweep.hand);
            let Some(region) = self.pages[place(page)].next_set(self.sweep.hand) else {
                let end = (page.0 + 1) * self.regions_per_page;
                self.sweep.pass(RegionNo(end.min(count)), count);
                continue;
            };
            let near = region.0 - self.sweep.hand.0 < self.sweep.left;
            if near && self.cool(region, now_ms, regions, tracking) {
                self.sweep.found();
            }
            self.sweep.pass(RegionNo(region.0 + 1), count);
        }
        self.sweep.goes_on_ms = now_ms + REST_MS;
    }

    fn cool(&mut self, region: RegionNo, now_ms: u64, regions: &Regions, tracking: &Tracking) -> bool {
        let tracks = regions.tracks(region);
        if self.cooled.is_empty() {
            (self.put_back, self.cooled_ms) = (tracking.put_back(), now_ms);
        }
        if !regions.is_hot(region) {
            return false;
        }
        // Of one with marks too: its time begins with its last write.
        let used = regions.take_used(region) && !present(Bug::ClearedWhilePinned);
        if tracking.any_marked(tracks) {
            return false;
        }
        if used {
            self.sweep.spare();
            return false;
        }
        if !regions.cool(region) {
            return false;
        }
        // From here on writes to it wait. One that was under way until now has left its mark.
        if tracking.any_marked(tracks) {
            regions.heat(region);
            return false;
        }
        self.listening.retain(|listening| *listening != region);
        self.cooled.push(region);
        true
    }

    fn graced(&mut self, id: u64, durable: bool, regions: &Regions, tracking: &Tracking) {
        if self.grace != Some(id) {
            return;
        }
        self.grace = None;
        if self.figures.failed {
            return;
        }
        if !durable {
            regions.doubt_primary();
        }
        let put_back = tracking.put_back() != self.put_back && !present(Bug::ClearedAfterFailure);
        let cleared = self.figures.cleared;
        for region in std::mem::take(&mut self.cooled) {
            if !durable || put_back || regions.is_in_doubt() || tracking.any_marked(regions.tracks(region)) {
                regions.heat(region);
                continue;
            }
            let number = self.page_of(region);
            let page = self.page_mut(region);
            page.set(region, false);
            page.clearing.push(region);
            self.dirty.insert(number);
            self.figures.hot -= 1;
            self.figures.cleared += 1;
        }
        // A record that counts for the sake of another page would have what was cleared copied again after a crash.
        if self.figures.cleared > cleared {
            self.write_logged_pages();
        }
    }
}

#[expect(clippy::cast_possible_truncation, reason = "the pages are in memory, so usize holds their number")]
fn place(page: PageNo) -> usize {
    page.0 as usize
}
