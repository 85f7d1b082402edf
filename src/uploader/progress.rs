//! How far a request of the ring has come: one that was answered in part, or turned away for now, is asked for again.

/// A request that is turned away for now is repeated this often at once; then it has failed, and is tried again when
/// the link or the track is.
const AGAIN_MAX: u8 = 16;

/// What was done of a request before, and how often in a row it was turned away.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub(super) struct Part {
    /// In bytes.
    pub done: u32,
    again: u8,
}

/// What became of a request.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Progress {
    Whole,
    /// The rest has to be asked for.
    Rest(Part),
    Failed,
}

impl Part {
    /// What a result means for a request of `length` bytes of which this much was done before.
    pub fn after(self, result: i32, length: u64) -> Progress {
        match u32::try_from(result) {
            Ok(moved) if u64::from(self.done + moved) == length => Progress::Whole,
            Ok(0) => Progress::Failed,
            Ok(moved) => Progress::Rest(Self { done: self.done + moved, again: 0 }),
            Err(_) if matches!(-result, libc::EAGAIN | libc::EINTR) && self.again < AGAIN_MAX => {
                Progress::Rest(Self { again: self.again + 1, ..self })
            }
            Err(_) => Progress::Failed,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_that_is_turned_away_for_ever_has_failed_and_one_that_moves_goes_on() {
        for errno in [libc::EAGAIN, libc::EINTR] {
            let (mut part, mut repeats) = (Part { done: 4096, again: 0 }, 0);
            while let Progress::Rest(rest) = part.after(-errno, 1 << 20) {
                assert_eq!(rest.done, 4096);
                (part, repeats) = (rest, repeats + 1);
                assert!(repeats <= 100, "without an end");
            }
            let Progress::Rest(moved) = part.after(4096, 1 << 20) else { panic!("it moves") };
            assert_eq!(moved, Part { done: 8192, again: 0 }, "and may be turned away again");
        }
        assert_eq!(Part::default().after(-libc::EIO, 4096), Progress::Failed);
        assert_eq!(Part::default().after(0, 4096), Progress::Failed);
        assert_eq!(Part { done: 1024, again: 3 }.after(3072, 4096), Progress::Whole);
    }
}
