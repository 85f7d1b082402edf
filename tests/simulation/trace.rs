//! The last events of a run, kept cheaply and shown when a promise breaks.

use crate::crash::Stop;
use crate::devices::{Io, Mode};
use crate::side::Asked;
use farpoint::group::GroupEffect;
use farpoint::intent;
use farpoint::uploader::{Message, Op, Policy, Report};
use std::collections::VecDeque;

/// How many are kept.
const KEPT: usize = 40;

/// Something that happened.
#[expect(dead_code, reason = "the fields are read by the derived Debug alone")]
#[derive(Debug, Clone)]
pub enum Note {
    Issue { volume: usize, queue: usize, tag: u16, asked: Asked },
    Answer { volume: usize, queue: usize, tag: u16, result: i32 },
    Submit(Io),
    Done(Io),
    Rung(usize, usize),
    Drain(usize, Message),
    Poll(usize, Op),
    Report(usize, Report),
    Command(&'static str, u64),
    Effect(u64, GroupEffect),
    Arm(usize, u64),
    Begin(u64),
    Secondary(usize, Mode),
    LoseFlush(usize),
    Unreadable(usize, usize, bool),
    Policy(usize, Policy),
    Phase(&'static str),
    Keeper(usize, intent::Op),
    Stop(Stop),
}

/// The last events, or all of them on the terminal.
#[derive(Debug)]
pub struct Trace {
    last: VecDeque<(u64, Note)>,
    verbose: bool,
}

impl Trace {
    pub fn new(verbose: bool) -> Self {
        Self { last: VecDeque::with_capacity(KEPT + 1), verbose }
    }

    pub fn is_verbose(&self) -> bool {
        self.verbose
    }

    #[inline]
    pub fn note(&mut self, now_us: u64, note: Note) {
        if self.verbose {
            println!("{now_us:>9} us  {note:?}");
        }
        if self.last.len() == KEPT {
            self.last.pop_front();
        }
        self.last.push_back((now_us, note));
    }

    pub fn lines(&self) -> Vec<String> {
        self.last.iter().map(|(now_us, note)| format!("{now_us:>9} us  {note:?}")).collect()
    }
}
