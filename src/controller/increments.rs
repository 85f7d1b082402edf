//! Increments over one or many volumes: the three commands, what the drains report, the timers, and carrying out what
//! the group machine says. The machine decides; this is its hands.

use super::api::{Failure, FailureKind, IncrementReply, Response, Start};
use super::entry::Phase;
use super::{Controller, Note, Reply, answer};
use crate::group::{Group, GroupEffect, VolumeId};
use crate::increment::{AbortReason, Effect, Event, IncrementNo, Refusal};
use crate::metadata::media::Media;
use crate::uploader::Report;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, spawn_blocking};

/// An increment under way.
pub(super) struct Running {
    pub group: Group,
    /// Number of the epoch that its cut began; what the drains know it by.
    cut: u64,
    pub names: Vec<String>,
    run_timer_ms: u64,
    increment_timer_ms: u64,
    /// When the cut was made: the time that the point is of.
    pub cut_at: Instant,
    held_us: u64,
    /// Who waits for the cut.
    starting: Option<Reply>,
    /// Who waits for the end of an abort.
    aborting: Option<Reply>,
    pub aborted: bool,
    /// Until the release, and until the end.
    run_timer: Option<Timer>,
    increment_timer: Option<Timer>,
}

/// A note that comes after a while, unless this is dropped before.
struct Timer(AbortHandle);

impl Timer {
    fn set(notes: &mpsc::UnboundedSender<Note>, ms: u64, note: Note) -> Self {
        let notes = notes.clone();
        let task = tokio::spawn(async move {
            tokio::time::sleep(Duration::from_millis(ms)).await;
            let _ = notes.send(note);
        });
        Self(task.abort_handle())
    }
}

impl Drop for Timer {
    fn drop(&mut self) {
        self.0.abort();
    }
}

/// An increment whose number is being stored.
pub(super) struct Reservation {
    number: IncrementNo,
    names: Vec<String>,
    run_timer_ms: u64,
    reply: Reply,
}

impl Running {
    fn answer(&self) -> Response {
        Response::Increment(IncrementReply {
            increment: self.group.number().0,
            volumes: self.names.clone(),
            hold_us: self.held_us,
        })
    }
}

fn refused(names: &[String], refusal: Refusal) -> Failure {
    Failure::new(FailureKind::WrongState, format!("{}: {refusal}", names.join(" ")))
}

impl Controller {
    /// `start`: stores the number in every volume's superblock, then makes the cut (seed 004 \[0039\]).
    pub(super) fn start(&mut self, start: &Start, reply: Reply) {
        match self.reserve(start) {
            Ok((number, run_timer_ms, stores)) => {
                let reservation = Reservation { number, names: start.volumes.clone(), run_timer_ms, reply };
                let notes = self.notes.clone();
                spawn_blocking(move || {
                    // Into every volume's superblock before the cut: a number is never used twice, whatever happens.
                    let result = stores.into_iter().try_for_each(|media: Arc<Media>| {
                        let written = media.update(|superblock| superblock.last_increment = number.0);
                        written.map(drop).map_err(Failure::from)
                    });
                    let _ = notes.send(Note::Reserved(reservation, result));
                });
            }
            Err(failure) => answer(reply, Err(failure)),
        }
    }

    /// Takes the next number for all of them, or refuses if one cannot take part.
    fn reserve(&mut self, start: &Start) -> Result<(IncrementNo, u64, Vec<Arc<Media>>), Failure> {
        let (mut last, mut run_timer_ms) = (self.last_increment, u64::MAX);
        for name in &start.volumes {
            let entry = self.entry(name)?;
            entry.running().map_err(|failure| Failure { message: format!("{name}: {failure}"), ..failure })?;
            if let Some(number) = entry.increment {
                let refusal = match self.increments.get(&number) {
                    Some(running) if running.aborted => Refusal::Aborting(number),
                    _ => Refusal::UnderWay(number),
                };
                return Err(refused(std::slice::from_ref(name), refusal));
            }
            last = last.max(entry.known.superblock.last_increment);
            run_timer_ms = run_timer_ms.min(entry.settings.run_timer_ms);
        }
        let number = IncrementNo(last + 1);
        let mut stores = Vec::new();
        for name in &start.volumes {
            let entry = self.entry_mut(name)?;
            entry.known.superblock.last_increment = number.0;
            entry.increment = Some(number);
            stores.extend(entry.media.clone());
        }
        self.last_increment = number.0;
        Ok((number, start.run_timer_ms.unwrap_or(run_timer_ms), stores))
    }

    /// The number is stored: the cut may be made.
    pub(super) fn reserved(&mut self, reservation: Reservation, stored: Result<(), Failure>) {
        let Reservation { number, names, run_timer_ms, reply } = reservation;
        let volumes: Result<Vec<VolumeId>, Failure> = names
            .iter()
            .map(|name| {
                let entry = self.entry(name)?;
                entry.running()?;
                // Taken down meanwhile, and perhaps up again.
                let gone = || Failure::new(FailureKind::WrongState, format!("{name}: it was taken down meanwhile"));
                (entry.increment == Some(number)).then_some(entry.id).ok_or_else(gone)
            })
            .collect();
        let volumes = match stored.and(volumes) {
            Ok(volumes) => volumes,
            Err(failure) => {
                self.leave(number, &names);
                return answer(reply, Err(failure));
            }
        };
        let mut effects = Vec::new();
        let group = match Group::start(number, &volumes, &mut effects) {
            Ok(group) => group,
            Err(refusal) => {
                self.leave(number, &names);
                return answer(reply, Err(refused(&names, refusal)));
            }
        };
        let timers = names.iter().filter_map(|name| self.volumes.get(name));
        let increment_timer_ms = timers.map(|entry| entry.settings.increment_timer_ms).min().unwrap_or(u64::MAX);
        let running = Running {
            group,
            cut: 0,
            names,
            run_timer_ms,
            increment_timer_ms,
            cut_at: Instant::now(),
            held_us: 0,
            starting: Some(reply),
            aborting: None,
            aborted: false,
            run_timer: None,
            increment_timer: None,
        };
        self.increments.insert(number, running);
        self.carry_out(number, effects);
    }

    /// `run`: lets the held writes of all go (seed 004 \[0041\]).
    pub(super) fn run_increment(&mut self, names: &[String], reply: Reply) {
        let result = self.with_group(names, |running, effects| {
            running.group.run(effects).map_err(|refusal| refused(&running.names, refusal))
        });
        answer(reply, result);
    }

    /// `increment-complete` (seed 004 \[0048\]).
    pub(super) fn complete(&mut self, names: &[String], reply: Reply) {
        let result = self.with_group(names, |running, effects| {
            running.group.complete(effects).map_err(|refusal| refused(&running.names, refusal))
        });
        answer(reply, result);
    }

    /// `abort`; answered when the volumes are back to normal.
    pub(super) fn abort(&mut self, names: &[String], reply: Reply) {
        let mut reply = Some(reply);
        let result = self.with_group(names, |running, effects| {
            running.group.abort(AbortReason::Request, effects).map_err(|refusal| refused(&running.names, refusal))?;
            running.aborting = reply.take();
            Ok(())
        });
        if let Some(reply) = reply {
            answer(reply, result);
        }
    }

    /// The volume is gone, and with it whatever its increment waited for.
    pub(super) fn gone(&mut self, name: &str) {
        let part = self.volumes.get(name).and_then(|entry| Some((entry.id, entry.increment?)));
        if let Some((id, number)) = part {
            self.member_event(number, id, Event::Folded);
        }
    }

    /// Gives up the increment that the volume is part of, if any: it is going down.
    pub(super) fn abort_for(&mut self, name: &str) {
        let Some(number) = self.volumes.get(name).and_then(|entry| entry.increment) else { return };
        let Some(running) = self.increments.get_mut(&number) else { return };
        let mut effects = Vec::new();
        let _ = running.group.abort(AbortReason::VolumeStopped, &mut effects);
        self.carry_out(number, effects);
    }

    fn with_group(
        &mut self,
        names: &[String],
        command: impl FnOnce(&mut Running, &mut Vec<GroupEffect>) -> Result<(), Failure>,
    ) -> Result<Response, Failure> {
        let number = self.group_of(names)?;
        let running = self.increments.get_mut(&number).ok_or_else(|| refused(names, Refusal::CutNotReached(number)))?;
        let mut effects = Vec::new();
        command(running, &mut effects)?;
        let response = running.answer();
        let released = effects.iter().any(|effect| matches!(effect, GroupEffect::Member(_, Effect::Release)));
        self.carry_out(number, effects);
        match self.increments.get(&number) {
            Some(running) if released => Ok(running.answer()),
            _ => Ok(response),
        }
    }

    /// The increment of exactly these volumes.
    fn group_of(&self, names: &[String]) -> Result<IncrementNo, Failure> {
        let mut number = None;
        for name in names {
            let entry = self.entry(name)?;
            entry.running().map_err(|failure| Failure { message: format!("{name}: {failure}"), ..failure })?;
            let own = entry.increment.ok_or_else(|| refused(std::slice::from_ref(name), Refusal::NoIncrement))?;
            if *number.get_or_insert(own) != own {
                let why = format!("{}: they were not cut together; name the volumes of one increment", names.join(" "));
                return Err(Failure::new(FailureKind::WrongState, why));
            }
        }
        let number = number.ok_or_else(|| refused(names, Refusal::NoIncrement))?;
        let running = self.increments.get(&number);
        if running.is_some_and(|running| running.aborted) {
            // Others of it may have left already.
            return Err(refused(names, Refusal::Aborting(number)));
        }
        if let Some(running) = running
            && running.names.len() != names.len()
        {
            let all = running.names.join(" ");
            let why = format!("increment {number} is over {all}; name them all");
            return Err(Failure::new(FailureKind::WrongState, why));
        }
        Ok(number)
    }

    /// A drain has something to say about the increment that its volume is part of.
    pub(super) fn report(&mut self, volume: VolumeId, report: Report) {
        let (cut, event) = match report {
            Report::CutReached(cut) => (cut, Event::CutReached),
            Report::Drained(cut) => (cut, Event::Drained),
            Report::Abort(cut, reason) => (cut, Event::Abort(reason)),
            Report::Folded(cut) => (cut, Event::Folded),
        };
        let number = self.increments.iter().find(|(_, running)| running.cut == cut).map(|(number, _)| *number);
        if let Some(number) = number {
            self.member_event(number, volume, event);
        }
    }

    /// Something has happened to one volume of an increment.
    pub(super) fn member_event(&mut self, number: IncrementNo, volume: VolumeId, event: Event) {
        let Some(running) = self.increments.get_mut(&number) else { return };
        let mut effects = Vec::new();
        running.group.member(volume, event, &mut effects);
        self.carry_out(number, effects);
    }

    pub(super) fn timer(&mut self, number: IncrementNo, event: Event) {
        let Some(running) = self.increments.get_mut(&number) else { return };
        let mut effects = Vec::new();
        running.group.timer(event, &mut effects);
        self.carry_out(number, effects);
    }

    fn carry_out(&mut self, number: IncrementNo, effects: Vec<GroupEffect>) {
        let mut armed = (false, false);
        for effect in effects {
            match effect {
                GroupEffect::Cut(volumes) => self.cut(number, &volumes),
                GroupEffect::Member(volume, effect) => self.member(number, volume, effect, &mut armed),
                GroupEffect::AllReached => self.all_reached(number),
                GroupEffect::AllDrained => tracing::info!("increment {number} is drained"),
                GroupEffect::Aborted(reason, cause) => self.aborted(number, reason, cause),
                GroupEffect::Left(volume) => self.left(number, volume),
                GroupEffect::Ended => self.ended(number),
            }
        }
    }

    /// Arms every volume, then cuts them all with one store.
    fn cut(&mut self, number: IncrementNo, volumes: &[VolumeId]) {
        // The epoch's number is taken now and not the increment's: increments of other volumes may overtake this one
        // while its number is being stored, and epochs only grow.
        let cut = self.epoch.number() + 1;
        let members = || self.volumes.values().filter(|entry| volumes.contains(&entry.id));
        for volume in members().filter_map(|entry| entry.running().ok()) {
            volume.arm(cut);
        }
        self.epoch.begin(cut);
        if let Some(running) = self.increments.get_mut(&number) {
            (running.cut, running.cut_at) = (cut, Instant::now());
        }
        for volume in members().filter_map(|entry| entry.running().ok()) {
            volume.cut();
        }
    }

    fn member(&mut self, number: IncrementNo, id: VolumeId, effect: Effect, armed: &mut (bool, bool)) {
        let Some(running) = self.increments.get_mut(&number) else { return };
        let held_us = u64::try_from(running.cut_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        match effect {
            // Of a group one timer is enough.
            Effect::SetRunTimer(_) if !std::mem::replace(&mut armed.0, true) => {
                let note = Note::Timer(number, Event::RunTimer(number));
                running.run_timer = Some(Timer::set(&self.notes, running.run_timer_ms, note));
            }
            Effect::SetIncrementTimer(_) if !std::mem::replace(&mut armed.1, true) => {
                let note = Note::Timer(number, Event::IncrementTimer(number));
                running.increment_timer = Some(Timer::set(&self.notes, running.increment_timer_ms, note));
            }
            Effect::SetRunTimer(_) | Effect::SetIncrementTimer(_) => {}
            Effect::Release | Effect::Retire { .. } => {
                let Some(entry) = self.volumes.values_mut().find(|entry| entry.id == id) else { return };
                let Phase::Up(volume) = &entry.phase else { return };
                if volume.tracking().holding() {
                    entry.hold_us_max = entry.hold_us_max.max(held_us);
                }
                match effect {
                    Effect::Retire { aborted } => volume.retire(aborted),
                    _ => volume.release(),
                }
                if effect == Effect::Release {
                    running.held_us = held_us;
                    running.run_timer = None;
                }
            }
        }
    }

    fn all_reached(&mut self, number: IncrementNo) {
        let Some(running) = self.increments.get_mut(&number) else { return };
        running.held_us = u64::try_from(running.cut_at.elapsed().as_micros()).unwrap_or(u64::MAX);
        let response = running.answer();
        if let Some(reply) = running.starting.take() {
            answer(reply, Ok(response));
        }
    }

    fn aborted(&mut self, number: IncrementNo, reason: AbortReason, cause: Option<VolumeId>) {
        let Some(running) = self.increments.get_mut(&number) else { return };
        running.aborted = true;
        (running.run_timer, running.increment_timer) = (None, None);
        let whose = self.volumes.iter().find(|(_, entry)| Some(entry.id) == cause).map(|(name, _)| name.clone());
        let whose = whose.filter(|_| running.names.len() > 1).map_or(String::new(), |name| format!("{name}: "));
        let why = format!("increment {number}: {whose}{reason}");
        tracing::warn!("aborted: {why}");
        let failure = Failure::new(FailureKind::Failed, format!("aborted: {why}; nothing is lost, start again"));
        if let Some(reply) = running.starting.take() {
            answer(reply, Err(failure));
        }
        for name in running.names.clone() {
            if let Some(entry) = self.volumes.get_mut(&name) {
                entry.aborted += 1;
                entry.last_abort = Some(why.clone());
            }
        }
    }

    fn ended(&mut self, number: IncrementNo) {
        let Some(running) = self.increments.remove(&number) else { return };
        self.leave(number, &running.names);
        if !running.aborted {
            tracing::info!("increment {number} is complete");
            for name in &running.names {
                if let Some(entry) = self.volumes.get_mut(name) {
                    entry.completed += 1;
                    let completed = super::lifecycle::completed(number.0, running.cut_at);
                    entry.note_in_media(move |superblock| {
                        superblock.completed = Some(completed);
                        superblock.incomplete = false;
                    });
                    entry.last_complete = Some((number, running.cut_at));
                    entry.full_copy = false;
                }
            }
        }
        let response = running.answer();
        if let Some(reply) = running.aborting {
            answer(reply, Ok(response));
        }
    }

    /// The volumes are no longer part of that increment; they may be part of a newer one already.
    fn leave(&mut self, number: IncrementNo, names: &[String]) {
        for name in names {
            if let Some(entry) = self.volumes.get_mut(name) {
                entry.increment = entry.increment.filter(|own| *own != number);
            }
        }
    }

    /// One volume of an aborted increment is back to normal.
    fn left(&mut self, number: IncrementNo, volume: VolumeId) {
        let name = self.volumes.iter().find(|(_, entry)| entry.id == volume).map(|(name, _)| name.clone());
        self.leave(number, name.as_slice());
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_timer_fires_unless_it_is_dropped() {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_time().build().expect("a runtime");
        runtime.block_on(async {
            let (notes, mut fired) = mpsc::unbounded_channel();
            let note = |number| Note::Timer(IncrementNo(number), Event::RunTimer(IncrementNo(number)));
            let kept = Timer::set(&notes, 20, note(1));
            drop(Timer::set(&notes, 1, note(2)));
            assert!(matches!(fired.recv().await, Some(Note::Timer(IncrementNo(1), _))));
            drop((kept, notes));
            assert!(fired.recv().await.is_none(), "nothing is left of either");
        });
    }
}
