//! The volumes of one cut: nobody is cut until all are armed, nobody is released until all have cut, and when one gives
//! up all do (H17 rule 5, R66). Pure: events in, effects out.
//!
//! The members live in one controller and share its epoch word, so that the cut itself is one store. Each member's own
//! states are [`Increment`]'s; this machine holds the barrier between them.

use crate::bugs::{Bug, present};
use crate::increment::{AbortReason, Effect, Event, Increment, IncrementNo, Refusal, State};

/// Index of a volume within its controller; never reused while the controller lives.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct VolumeId(pub usize);

/// An effect for one member, or for the group as a whole.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum GroupEffect {
    /// Arm these and then begin the epoch of the increment's number: the cut.
    Cut(Vec<VolumeId>),
    Member(VolumeId, Effect),
    /// Every member has cut: `start` may be answered.
    AllReached,
    /// Every member is drained: the secondaries together are the consistency point.
    AllDrained,
    /// The increment was given up, by the member named if one did.
    Aborted(AbortReason, Option<VolumeId>),
    /// After an abort this member is back to normal, whatever the others do: it may take part in another increment.
    Left(VolumeId),
    /// Every member is back to normal: the group is no more.
    Ended,
}

/// The volumes of one increment.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Group {
    number: IncrementNo,
    members: Vec<(VolumeId, Increment)>,
    reached: bool,
    drained: bool,
    aborted: bool,
    /// Those of an aborted group that are back to normal.
    left: Vec<VolumeId>,
}

impl Group {
    /// Starts increment `number` over `volumes`.
    pub fn start(number: IncrementNo, volumes: &[VolumeId], effects: &mut Vec<GroupEffect>) -> Result<Self, Refusal> {
        let members = volumes.iter().map(|&id| (id, Increment::new())).collect();
        let mut group = Self { number, members, reached: false, drained: false, aborted: false, left: Vec::new() };
        group.all(Event::Start(number), effects)?;
        let cut = if present(Bug::EarlyRelease) { &volumes[..1] } else { volumes };
        effects.push(GroupEffect::Cut(cut.to_vec()));
        Ok(group)
    }

    pub fn number(&self) -> IncrementNo {
        self.number
    }

    pub fn volumes(&self) -> impl Iterator<Item = VolumeId> {
        self.members.iter().map(|(id, _)| *id)
    }

    pub fn state(&self, volume: VolumeId) -> Option<State> {
        self.members.iter().find(|(id, _)| *id == volume).map(|(_, machine)| machine.state())
    }

    /// Whether every member is drained.
    pub fn is_drained(&self) -> bool {
        self.members.iter().all(|(_, machine)| matches!(machine.state(), State::InProgress { drained: true, .. }))
    }

    /// Whether every member has cut.
    fn is_reached(&self) -> bool {
        self.members.iter().all(|(_, machine)| matches!(machine.state(), State::Pending { reached: true, .. }))
    }

    /// Something happened to one member.
    pub fn member(&mut self, volume: VolumeId, event: Event, effects: &mut Vec<GroupEffect>) {
        let Some((_, machine)) = self.members.iter_mut().find(|(id, _)| *id == volume) else { return };
        let mut own = Vec::new();
        // A member's event that comes late, after an abort say, is refused by its machine and means nothing.
        let _ = machine.handle(event, &mut own);
        if present(Bug::EarlyRelease) && event == Event::CutReached && self.members[0].0 == volume {
            effects.push(GroupEffect::Member(volume, Effect::Release));
            effects.push(GroupEffect::Cut(self.volumes().skip(1).collect()));
        }
        effects.extend(own.into_iter().map(|effect| GroupEffect::Member(volume, effect)));
        self.settle(Some(volume), effects);
    }

    /// `run`: releases every member, once all have cut.
    pub fn run(&mut self, effects: &mut Vec<GroupEffect>) -> Result<(), Refusal> {
        self.all(Event::Run, effects)?;
        self.settle(None, effects);
        Ok(())
    }

    /// `increment-complete`: retires every member, once all are drained.
    pub fn complete(&mut self, effects: &mut Vec<GroupEffect>) -> Result<(), Refusal> {
        self.all(Event::Complete, effects)?;
        self.settle(None, effects);
        Ok(())
    }

    /// Gives the increment up.
    pub fn abort(&mut self, reason: AbortReason, effects: &mut Vec<GroupEffect>) -> Result<(), Refusal> {
        self.all(Event::Abort(reason), effects)?;
        self.settle(None, effects);
        Ok(())
    }

    /// A timer of this increment fired.
    pub fn timer(&mut self, event: Event, effects: &mut Vec<GroupEffect>) {
        // A timer that comes too late is taken and changes nothing.
        let _ = self.all(event, effects);
        self.settle(None, effects);
    }

    /// Gives every member the event, or none if one would refuse it: that is the barrier.
    fn all(&mut self, event: Event, effects: &mut Vec<GroupEffect>) -> Result<(), Refusal> {
        for (_, machine) in &self.members {
            machine.would_take(event)?;
        }
        for (volume, machine) in &mut self.members {
            let mut own = Vec::new();
            machine.handle(event, &mut own)?;
            effects.extend(own.into_iter().map(|effect| GroupEffect::Member(*volume, effect)));
        }
        Ok(())
    }

    /// What follows for the group from its members' states: after every event, the same.
    fn settle(&mut self, cause: Option<VolumeId>, effects: &mut Vec<GroupEffect>) {
        let gave_up = self.members.iter().find_map(|(_, machine)| match machine.state() {
            State::Aborting { reason, .. } => Some(reason),
            _ => None,
        });
        if let (Some(reason), false) = (gave_up, self.aborted) {
            self.aborted = true;
            effects.push(GroupEffect::Aborted(reason, cause));
            for (volume, machine) in &mut self.members {
                let mut own = Vec::new();
                if machine.handle(Event::Abort(AbortReason::Peer), &mut own).is_ok() {
                    effects.extend(own.into_iter().map(|effect| GroupEffect::Member(*volume, effect)));
                }
            }
        }
        if !self.reached && self.is_reached() {
            self.reached = true;
            effects.push(GroupEffect::AllReached);
        }
        if !self.drained && self.is_drained() {
            self.drained = true;
            effects.push(GroupEffect::AllDrained);
        }
        if self.aborted {
            // One that hangs keeps itself, nobody else.
            for (volume, machine) in &self.members {
                if machine.state() == State::Normal && !self.left.contains(volume) {
                    self.left.push(*volume);
                    effects.push(GroupEffect::Left(*volume));
                }
            }
        }
        if self.members.iter().all(|(_, machine)| machine.state() == State::Normal) {
            effects.push(GroupEffect::Ended);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const N: IncrementNo = IncrementNo(3);
    const A: VolumeId = VolumeId(0);
    const B: VolumeId = VolumeId(1);

    fn group() -> (Group, Vec<GroupEffect>) {
        let mut effects = Vec::new();
        let group = Group::start(N, &[A, B], &mut effects).expect("starts");
        effects.clear();
        (group, effects)
    }

    #[test]
    fn nobody_is_released_before_all_have_cut() {
        let (mut group, mut effects) = group();
        group.member(A, Event::CutReached, &mut effects);
        assert_eq!(effects, []);
        assert_eq!(group.run(&mut effects), Err(Refusal::CutNotReached(N)));
        assert_eq!(effects, []);
        group.member(B, Event::CutReached, &mut effects);
        assert_eq!(effects, [GroupEffect::AllReached]);
        group.run(&mut effects).expect("released");
        assert!(effects.contains(&GroupEffect::Member(A, Effect::Release)));
        assert!(effects.contains(&GroupEffect::Member(B, Effect::Release)));
    }

    #[test]
    fn when_one_gives_up_all_do() {
        let (mut group, mut effects) = group();
        group.member(B, Event::Abort(AbortReason::FlushFailed), &mut effects);
        assert_eq!(
            effects,
            [
                GroupEffect::Member(B, Effect::Retire { aborted: true }),
                GroupEffect::Aborted(AbortReason::FlushFailed, Some(B)),
                GroupEffect::Member(A, Effect::Retire { aborted: true }),
            ]
        );
        effects.clear();
        group.member(A, Event::Folded, &mut effects);
        assert_eq!(effects, [GroupEffect::Left(A)], "B may take as long as it likes");
        effects.clear();
        group.member(A, Event::Folded, &mut effects);
        assert_eq!(effects, [], "it leaves once");
        group.member(B, Event::Folded, &mut effects);
        assert_eq!(effects, [GroupEffect::Left(B), GroupEffect::Ended]);
    }

    #[test]
    fn drained_is_said_once_and_only_of_all() {
        let (mut group, mut effects) = group();
        for volume in [A, B] {
            group.member(volume, Event::CutReached, &mut effects);
        }
        group.run(&mut effects).expect("runs");
        effects.clear();
        group.member(A, Event::Drained, &mut effects);
        assert_eq!(group.complete(&mut effects), Err(Refusal::NotDrained(N)));
        assert_eq!(effects, []);
        group.member(B, Event::Drained, &mut effects);
        group.member(B, Event::Drained, &mut effects);
        assert_eq!(effects, [GroupEffect::AllDrained]);
        group.complete(&mut effects).expect("completes");
        assert!(effects.contains(&GroupEffect::Ended));
        assert!(!effects.iter().any(|effect| matches!(effect, GroupEffect::Left(_))), "all end at once");
    }
}
