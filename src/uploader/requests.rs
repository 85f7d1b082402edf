//! Requests of a ring under way, by the number that their completion brings back.

/// A table that neither grows nor is searched.
#[derive(Debug)]
pub(super) struct Requests<T> {
    table: Vec<Option<T>>,
    free: Vec<usize>,
}

impl<T> Requests<T> {
    pub fn new(capacity: usize) -> Self {
        Self { table: (0..capacity).map(|_| None).collect(), free: (0..capacity).rev().collect() }
    }

    /// Keeps a request; its number is to be the entry's user data.
    pub fn put(&mut self, request: T) -> u64 {
        let place = self.free.pop().unwrap_or_else(|| {
            // Not reached while the window bounds what is under way; correct all the same.
            self.table.push(None);
            self.table.len() - 1
        });
        self.table[place] = Some(request);
        place as u64
    }

    pub fn take(&mut self, number: u64) -> Option<T> {
        let place = usize::try_from(number).ok()?;
        let request = self.table.get_mut(place)?.take()?;
        self.free.push(place);
        Some(request)
    }

    pub fn under_way(&self) -> usize {
        self.table.len() - self.free.len()
    }
}
