//! The keeper's letter box: what writes and the drain tell it, and the bell that wakes it.

use super::regions::RegionRange;
use crate::doorbell::Doorbell;
use std::sync::{Mutex, PoisonError};

/// A message to a keeper.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Message {
    /// A write of this queue is parked until all of these regions are hot.
    Want { queue: usize, regions: RegionRange },
    /// A region marked ahead is in use.
    Look,
    /// The drain's answer to a grace: whether everything is durable that it had in hand when it was asked, and that it
    /// did not put back.
    Graced { id: u64, durable: bool },
    /// Write nothing more, and end.
    Stop,
}

/// Messages to one keeper.
#[derive(Debug)]
pub struct Mailbox {
    messages: Mutex<Vec<Message>>,
    bell: Doorbell,
}

impl Mailbox {
    /// `capacity`: as many messages as can wait without allocating.
    pub fn new(capacity: usize) -> nix::Result<Self> {
        Ok(Self { messages: Mutex::new(Vec::with_capacity(capacity)), bell: Doorbell::new()? })
    }

    pub fn tell(&self, message: Message) {
        // `Look` is the bell itself: a write to a hot region takes no lock.
        if message != Message::Look {
            self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        }
        self.bell.ring();
    }

    /// Moves all messages to the end of `into`. To be called after the bell was answered: a letter that comes later
    /// rings again.
    pub fn take(&self, into: &mut Vec<Message>) {
        into.append(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
