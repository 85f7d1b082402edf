//! A drain's letter box: what the queues and the controller tell it, and the bell that wakes it.

use super::message::Message;
use crate::doorbell::Doorbell;
use std::sync::{Mutex, PoisonError};

/// Messages to one drain.
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
        // `Look` is the bell itself.
        if message != Message::Look {
            self.messages.lock().unwrap_or_else(PoisonError::into_inner).push(message);
        }
        self.bell.ring();
    }

    /// Moves all messages to the end of `into`.
    pub fn take(&self, into: &mut Vec<Message>) {
        into.append(&mut self.messages.lock().unwrap_or_else(PoisonError::into_inner));
    }

    pub fn bell(&self) -> &Doorbell {
        &self.bell
    }
}
