//! One volume's part in an increment: its states and what each event does to them (seed 004 FIG 4 to 8).
//!
//! ```text
//!            start              run                    drained, increment-complete
//!   Normal --------> Pending ---------> InProgress -----------------------------------> Normal
//!     ^   (cut, hold)   |  (release)        |                                              ^
//!     |                 +---------+---------+                                              |
//!     |                           v abort: a timer, a failure, a request                   |
//!     +---------------------- Aborting ----------------------------------------------------+
//!        folded: the rest of the old OOS is back, no write of the old epoch is left
//! ```
//!
//! A pure function of state and event: no I/O, no clock, no thread. Effects come out as values, in the order in which
//! they have to be carried out. Timers are named by the increment they belong to, so that one which fires late is
//! known.

use std::fmt;

/// Number of an increment: one attempt at a consistency point. Never used twice.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct IncrementNo(pub u64);

impl fmt::Display for IncrementNo {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        self.0.fmt(f)
    }
}

/// Why an increment was given up.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum AbortReason {
    /// `run` did not come in time (seed 004 \[0039\]): the hold has ended.
    RunTimer,
    /// `increment-complete` did not come in time (seed 004 \[0041\]).
    IncrementTimer,
    /// Asked for.
    Request,
    /// The secondary failed to flush: images already let go may be lost (H7).
    FlushFailed,
    /// A colliding write waited for the secondary as long as it may (H13).
    CollisionWait,
    /// A before-image could not be read or was damaged in memory (H15, H20).
    ImageLost,
    /// The volume is going down or has failed.
    VolumeStopped,
    /// Another volume of the same cut gave it up.
    Peer,
}

impl fmt::Display for AbortReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::RunTimer => "run did not come before the run timer expired",
            Self::IncrementTimer => "the increment was not complete before the increment timer expired",
            Self::Request => "aborted on request",
            Self::FlushFailed => "the secondary failed to flush",
            Self::CollisionWait => "a host write had to wait too long for the secondary",
            Self::ImageLost => "the content of a track at the cut could not be kept",
            Self::VolumeStopped => "a volume was stopped",
            Self::Peer => "another volume of the cut gave up",
        })
    }
}

/// Where the volume is (seed 004 FIG 2, box 230).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum State {
    Normal,
    /// The cut is made and new writes are held. `reached`: the writes before it have all finished. `drained`: as below,
    /// since the drain never pauses.
    Pending {
        number: IncrementNo,
        reached: bool,
        drained: bool,
    },
    /// Writes go on and are recorded apart; the drain empties OOS. `drained`: it has, and the secondary has flushed.
    InProgress {
        number: IncrementNo,
        drained: bool,
    },
    /// The increment is void and its tracks are on their way back into OOS.
    Aborting {
        number: IncrementNo,
        reason: AbortReason,
    },
}

/// What can happen to the machine.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Event {
    Start(IncrementNo),
    /// The drain has seen the cut and every earlier write has finished: OOS is frozen and complete.
    CutReached,
    Run,
    Drained,
    Complete,
    Abort(AbortReason),
    RunTimer(IncrementNo),
    IncrementTimer(IncrementNo),
    /// The drain has put the rest of an aborted increment back.
    Folded,
}

/// What has to be done, in this order.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Effect {
    SetRunTimer(IncrementNo),
    SetIncrementTimer(IncrementNo),
    /// Let the held writes go.
    Release,
    /// What records now becomes OOS; held writes go. Of an aborted one the rest of the old OOS is folded in.
    Retire {
        aborted: bool,
    },
}

/// The event does not fit the state.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum Refusal {
    #[error("no increment is under way; begin one with start")]
    NoIncrement,
    #[error("increment {0} is under way; end it with increment-complete or abort")]
    UnderWay(IncrementNo),
    #[error("increment {0} has not made its cut yet: earlier writes are still in flight; wait for start to answer")]
    CutNotReached(IncrementNo),
    #[error("increment {0} is held; release its writes with run first")]
    NotRunning(IncrementNo),
    #[error("increment {0} is running already")]
    Running(IncrementNo),
    #[error("increment {0} has tracks left to send; wait until it is drained")]
    NotDrained(IncrementNo),
    #[error("increment {0} is being aborted; wait until the volume is normal")]
    Aborting(IncrementNo),
}

/// One volume's increment machine.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Increment {
    state: State,
}

impl Increment {
    pub fn new() -> Self {
        Self { state: State::Normal }
    }

    pub fn state(&self) -> State {
        self.state
    }

    /// Whether the machine may go from one state to another: the whole table.
    fn may_become(from: State, to: State) -> bool {
        use State::{Aborting, InProgress, Normal, Pending};
        match (from, to) {
            (Normal, Pending { reached: false, drained: false, .. })
            | (InProgress { drained: true, .. } | Aborting { .. }, Normal) => true,
            (Pending { number: a, reached: true, drained: was }, InProgress { number: b, drained: is }) => {
                a == b && was == is
            }
            (Pending { number: a, reached: false, .. }, Pending { number: b, reached: true, drained: false })
            | (
                Pending { number: a, reached: true, drained: false },
                Pending { number: b, reached: true, drained: true },
            )
            | (InProgress { number: a, drained: false }, InProgress { number: b, drained: true })
            | (Pending { number: a, .. } | InProgress { number: a, .. }, Aborting { number: b, .. }) => a == b,
            // Anything not allowed is prohibited.
            _ => false,
        }
    }

    fn become_(&mut self, to: State) {
        assert!(Self::may_become(self.state, to), "no way from {:?} to {to:?}", self.state);
        self.state = to;
    }

    /// Applies `event`, appending what must be done about it to `effects`.
    pub fn handle(&mut self, event: Event, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match event {
            Event::Start(number) => self.start(number, effects),
            Event::CutReached => {
                if let State::Pending { number, reached: false, .. } = self.state {
                    self.become_(State::Pending { number, reached: true, drained: false });
                }
                Ok(())
            }
            Event::Run => self.run(effects),
            Event::Drained => {
                match self.state {
                    State::InProgress { number, drained: false } => {
                        self.become_(State::InProgress { number, drained: true });
                    }
                    State::Pending { number, reached: true, drained: false } => {
                        self.become_(State::Pending { number, reached: true, drained: true });
                    }
                    _ => {}
                }
                Ok(())
            }
            Event::Complete => self.complete(effects),
            Event::Abort(reason) => self.abort(reason, effects),
            Event::RunTimer(fired) => match self.state {
                State::Pending { number, .. } if number == fired => self.abort(AbortReason::RunTimer, effects),
                _ => Ok(()),
            },
            Event::IncrementTimer(fired) => match self.state {
                State::InProgress { number, .. } if number == fired => self.abort(AbortReason::IncrementTimer, effects),
                _ => Ok(()),
            },
            Event::Folded => {
                if let State::Aborting { .. } = self.state {
                    self.become_(State::Normal);
                }
                Ok(())
            }
        }
    }

    fn start(&mut self, number: IncrementNo, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.state {
            State::Normal => {
                self.become_(State::Pending { number, reached: false, drained: false });
                effects.push(Effect::SetRunTimer(number));
                Ok(())
            }
            State::Pending { number, .. } | State::InProgress { number, .. } => Err(Refusal::UnderWay(number)),
            State::Aborting { number, .. } => Err(Refusal::Aborting(number)),
        }
    }

    fn run(&mut self, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.state {
            State::Pending { number, reached: true, drained } => {
                self.become_(State::InProgress { number, drained });
                effects.extend([Effect::Release, Effect::SetIncrementTimer(number)]);
                Ok(())
            }
            State::Pending { number, reached: false, .. } => Err(Refusal::CutNotReached(number)),
            State::Normal => Err(Refusal::NoIncrement),
            State::InProgress { number, .. } => Err(Refusal::Running(number)),
            State::Aborting { number, .. } => Err(Refusal::Aborting(number)),
        }
    }

    fn complete(&mut self, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.state {
            State::InProgress { drained: true, .. } => {
                self.become_(State::Normal);
                effects.push(Effect::Retire { aborted: false });
                Ok(())
            }
            State::InProgress { number, drained: false } => Err(Refusal::NotDrained(number)),
            State::Normal => Err(Refusal::NoIncrement),
            State::Pending { number, .. } => Err(Refusal::NotRunning(number)),
            State::Aborting { number, .. } => Err(Refusal::Aborting(number)),
        }
    }

    fn abort(&mut self, reason: AbortReason, effects: &mut Vec<Effect>) -> Result<(), Refusal> {
        match self.state {
            State::Pending { number, .. } | State::InProgress { number, .. } => {
                self.become_(State::Aborting { number, reason });
                effects.push(Effect::Retire { aborted: true });
                Ok(())
            }
            State::Normal => Err(Refusal::NoIncrement),
            State::Aborting { number, .. } => Err(Refusal::Aborting(number)),
        }
    }

    /// Whether an event of that kind would be taken in the present state, changing nothing.
    pub fn would_take(&self, event: Event) -> Result<(), Refusal> {
        self.clone().handle(event, &mut Vec::new())
    }
}

impl Default for Increment {
    fn default() -> Self {
        Self::new()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: IncrementNo = IncrementNo(7);

    fn after(events: &[Event]) -> (Increment, Vec<Effect>) {
        let (mut machine, mut effects) = (Increment::new(), Vec::new());
        for &event in events {
            machine.handle(event, &mut effects).expect("allowed");
        }
        (machine, effects)
    }

    #[test]
    fn a_whole_increment_cuts_releases_and_retires_once_each() {
        let (machine, effects) =
            after(&[Event::Start(N), Event::CutReached, Event::Run, Event::Drained, Event::Complete]);
        assert_eq!(machine.state(), State::Normal);
        assert_eq!(
            effects,
            [Effect::SetRunTimer(N), Effect::Release, Effect::SetIncrementTimer(N), Effect::Retire { aborted: false }]
        );
    }

    #[test]
    fn run_is_refused_before_the_earlier_writes_have_finished() {
        let (mut machine, _) = after(&[Event::Start(N)]);
        assert_eq!(machine.handle(Event::Run, &mut Vec::new()), Err(Refusal::CutNotReached(N)));
    }

    #[test]
    fn what_drains_while_writes_are_held_stays_drained() {
        let (machine, _) = after(&[Event::Start(N), Event::CutReached, Event::Drained, Event::Run, Event::Complete]);
        assert_eq!(machine.state(), State::Normal);
    }

    #[test]
    fn complete_is_refused_before_it_is_drained() {
        let (mut machine, _) = after(&[Event::Start(N), Event::CutReached, Event::Run]);
        assert_eq!(machine.handle(Event::Complete, &mut Vec::new()), Err(Refusal::NotDrained(N)));
    }

    #[test]
    fn each_timer_aborts_its_own_increment_in_its_own_state_only() {
        let (mut machine, _) = after(&[Event::Start(N)]);
        machine.handle(Event::RunTimer(IncrementNo(6)), &mut Vec::new()).expect("ignored");
        assert!(matches!(machine.state(), State::Pending { .. }));
        machine.handle(Event::RunTimer(N), &mut Vec::new()).expect("aborts");
        assert_eq!(machine.state(), State::Aborting { number: N, reason: AbortReason::RunTimer });

        let (mut machine, _) = after(&[Event::Start(N), Event::CutReached, Event::Run, Event::RunTimer(N)]);
        assert!(matches!(machine.state(), State::InProgress { .. }));
        machine.handle(Event::IncrementTimer(N), &mut Vec::new()).expect("aborts");
        assert_eq!(machine.state(), State::Aborting { number: N, reason: AbortReason::IncrementTimer });
    }

    #[test]
    fn no_sequence_of_six_events_leaves_the_table_or_holds_without_a_timer() {
        let events = [
            Event::Start(N),
            Event::CutReached,
            Event::Run,
            Event::Drained,
            Event::Complete,
            Event::Abort(AbortReason::Request),
            Event::RunTimer(N),
            Event::IncrementTimer(N),
            Event::Folded,
        ];
        let mut sequences = vec![Vec::new()];
        for _ in 0..6 {
            sequences = sequences
                .into_iter()
                .flat_map(|s: Vec<Event>| events.iter().map(move |&e| [s.clone(), vec![e]].concat()))
                .collect();
        }
        for sequence in sequences {
            let (mut machine, mut effects) = (Increment::new(), Vec::new());
            for event in sequence {
                let _ = machine.handle(event, &mut effects);
                let held = matches!(machine.state(), State::Pending { .. });
                let last_hold = effects.iter().rposition(|e| matches!(e, Effect::SetRunTimer(_)));
                let last_end = effects.iter().rposition(|e| matches!(e, Effect::Release | Effect::Retire { .. }));
                assert_eq!(held, last_hold > last_end, "held exactly from the start to the release: {effects:?}");
            }
        }
    }
}
