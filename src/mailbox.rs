//! A letter box with a bell: what others tell a thread that sleeps on its doorbell.

use crate::doorbell::Doorbell;
use std::sync::{Mutex, PoisonError};

/// What can be told.
pub trait Letter: Copy {
    /// Whether it says no more than the bell: then it is not kept, and telling it takes no lock.
    fn is_only_a_ring(&self) -> bool;
}

/// Letters to one thread.
#[derive(Debug)]
pub struct Mailbox<L> {
    letters: Mutex<Vec<L>>,
    bell: Doorbell,
}

impl<L: Letter> Mailbox<L> {
    /// `capacity`: as many letters as can wait without allocating.
    pub fn new(capacity: usize) -> nix::Result<Self> {
        Ok(Self { letters: Mutex::new(Vec::with_capacity(capacity)), bell: Doorbell::new()? })
    }

    pub fn tell(&self, letter: L) {
        if !letter.is_only_a_ring() {
            self.post(letter);
        }
        self.bell.ring();
    }

    /// Leaves a letter without ringing, for who reads it himself or rings later.
    pub fn post(&self, letter: L) {
        self.letters.lock().unwrap_or_else(PoisonError::into_inner).push(letter);
    }

    /// Moves all letters to the end of `into`. By the thread whose bell it is after the bell was answered: a
    /// letter that comes later rings again. Others may at any time.
    pub fn take(&self, into: &mut Vec<L>) {
        into.append(&mut self.letters.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
