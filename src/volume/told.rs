//! For tests: metadata on a medium that asks the test how each write is to end.

use super::desk::Intent;
use crate::geometry::Geometry;
use crate::intent::{LogStart, PageNo, REGION_SIZE_DEFAULT, RegionNo};
use crate::metadata::Side;
use crate::metadata::layout::Layout;
use crate::metadata::media::{Hot, Media};
use crate::metadata::medium::Medium;
use crate::metadata::superblock::Superblock;
use std::io;
use std::path::Path;
use std::sync::atomic::{AtomicBool, Ordering::SeqCst};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, LazyLock, Mutex};

/// What was asked for: pages, the first one's number and of each the first word, to be durable at once or with the
/// flush; a record and its regions.
#[derive(Debug, PartialEq)]
pub enum Asked {
    Write(PageNo, Vec<u64>),
    WriteLazily(PageNo, Vec<u64>),
    Flush,
    Record(u64, Vec<RegionNo>),
}

/// The medium; until the volume is made it answers by itself.
#[derive(Debug)]
pub struct Told {
    layout: Layout,
    asks: AtomicBool,
    questions: (Sender<Asked>, Mutex<Receiver<Asked>>),
    answers: (Sender<io::Result<()>>, Mutex<Receiver<io::Result<()>>>),
}

impl Told {
    /// The next question.
    pub fn asked(&self) -> Asked {
        self.questions.1.lock().expect("no panic").recv().expect("a question")
    }

    pub fn answer(&self, answer: io::Result<()>) {
        self.answers.0.send(answer).expect("somebody waits");
    }

    fn ask(&self, question: Asked) -> io::Result<()> {
        self.questions.0.send(question).map_err(io::Error::other)?;
        self.answers.1.lock().expect("no panic").recv().map_err(io::Error::other)?
    }

    /// What lies at this offset, if it is asked for.
    fn question(&self, offset: u64, bytes: &[u8], page: fn(PageNo, Vec<u64>) -> Asked) -> Option<Asked> {
        let number = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().expect("eight bytes"));
        let page_no = PageNo(offset.checked_sub(self.layout.intent_offset)? / 4096);
        if page_no.0 < self.layout.intent_pages {
            return Some(page(page_no, (0..bytes.len() / 4096).map(|page| number(page * 4096 + 32)).collect()));
        }
        let count = usize::from(u16::from_le_bytes([bytes[40], bytes[41]]));
        let used = 48 + 8 * count;
        assert_eq!(bytes[..used], bytes[4096..4096 + used], "a record is written twice");
        Some(Asked::Record(number(8), (0..count).map(|at| RegionNo(number(48 + at * 8))).collect()))
    }
}

impl Medium for Told {
    fn read(&self, _: u64, buffer: &mut [u8]) -> io::Result<()> {
        buffer.fill(0);
        Ok(())
    }

    fn write(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let question = if self.asks.load(SeqCst) { self.question(offset, bytes, Asked::Write) } else { None };
        question.map_or(Ok(()), |question| self.ask(question))
    }

    fn write_lazily(&self, offset: u64, bytes: &[u8]) -> io::Result<()> {
        let question = if self.asks.load(SeqCst) { self.question(offset, bytes, Asked::WriteLazily) } else { None };
        question.map_or(Ok(()), |question| self.ask(question))
    }

    fn flush(&self) -> io::Result<()> {
        if self.asks.load(SeqCst) { self.ask(Asked::Flush) } else { Ok(()) }
    }
}

/// No region is hot.
static COLD: LazyLock<Hot> = LazyLock::new(|| Hot::none(0));

/// The intent of a new volume none of whose regions is hot, the medium, and where failures are told.
pub fn intent(geometry: &Geometry, suspend: bool, log_slots: u32) -> (Arc<Told>, Intent<'static>, Receiver<String>) {
    let pages = Layout::new(geometry, REGION_SIZE_DEFAULT).intent_pages;
    let layout = Layout::with_slots(geometry, pages, log_slots);
    let side = |size| Side { identity: String::new(), size };
    let sides = [side(geometry.size()), side(geometry.size()), side(layout.bytes())];
    let region_size = u32::try_from(REGION_SIZE_DEFAULT).expect("small");
    let superblock = Superblock::with_layout([7; 16], "told", sides, geometry, region_size, layout);
    let ((ask, questions), (answer, answers), (fail, failures)) = (channel(), channel(), channel());
    let told = Arc::new(Told {
        layout,
        asks: AtomicBool::new(false),
        questions: (ask, Mutex::new(questions)),
        answers: (answer, Mutex::new(answers)),
    });
    let media = Media::format(Path::new("/told"), told.clone(), superblock).expect("made");
    told.asks.store(true, SeqCst);
    let intent = Intent {
        area: media.intent_area(),
        region_size: REGION_SIZE_DEFAULT,
        hot: &COLD,
        log: LogStart::empty(log_slots.into()),
        suspend,
        failed: Box::new(move |error| drop(fail.send(error.to_string()))),
    };
    (told, intent, failures)
}
