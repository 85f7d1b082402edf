//! The known bugs, each a switch that is off. The simulation turns one on and must find it.
//! Without the feature `bugs` every question is answered `false` at compile time and no trace is left in the program.

/// A rule of the design, left out.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Bug {
    /// The drain clears a track's mark only after it has read the track.
    ClearAfterRead,
    /// A write marks its tracks when it arrives, but not again when it is done.
    NoSecondMark,
    /// A track being read for the cut is not a collision, only one whose mark is still set.
    ReadingIsNoCollision,
    /// The cut is reported without waiting for the writes that arrived before it.
    CutWithoutWaiting,
    /// A volume releases its held writes as soon as it has cut, not when all of the group have.
    EarlyRelease,
    /// Drained is reported when no mark is left, with tracks still on their way.
    DrainedInTransit,
    /// Abort forgets what was recorded since the cut.
    RecordingDropped,
    /// A before-image is let go when it is sent, not when it is acknowledged.
    ImageFreedEarly,
    /// A failed flush of the secondary is taken for a good one.
    FlushFailureIgnored,
    /// The second mark goes to whatever structure records now, not to the one of the first mark.
    SecondMarkMoves,
    /// A failed send during an increment is repeated from the primary instead of from the image.
    ResendFromPrimary,
    /// A track is taken again while an older content of it is still on its way.
    SentTwiceAtOnce,
    /// A before-image is given up when its read is interrupted or moves a part only.
    ImageReadOnce,
    /// What a write wanted in an increment that is over is expected of the next one.
    LateWantCounts,
    /// A checksum error in our own memory is taken for an error of the secondary.
    DamageFailsLink,
    /// A write goes to the primary although its region is cold.
    DataBeforeIntent,
    /// A region is cleared although writes to it are under way.
    ClearedWhilePinned,
    /// A region is cleared when the secondary has acknowledged its tracks, not when it has flushed them.
    ClearedBeforeFlush,
    /// A region is cleared although one of its tracks was put back out of sync meanwhile.
    ClearedAfterFailure,
    /// A region is cleared although the primary has not flushed what the secondary has.
    PrimaryNotFlushed,
    /// A failed flush of the primary is forgotten when a later one succeeds.
    PrimaryErrorForgotten,
    /// A region that media still shows hot is taken for durable while the page without it is being written.
    PageWriteSkipped,
    /// A page of the intent is written again while it is being written.
    TwoWritesOfAPage,
    /// A record of the intent's log is written over although it still stands in for a page.
    RecordWrittenOver,
    /// A record stops counting when the last page that it stands in for is submitted, not when it is durable.
    RecordLetGoEarly,
    /// A durable record of the log is taken for the end of the others under way as well.
    RecordEndsOthers,
    /// A record of the log does not say that others before it are under way.
    RecordGapUntold,
    /// The log is not read at a start.
    LogForgotten,
    /// A start lets the log begin anew before the pages show what it named.
    LogResetFirst,
    /// A start takes pages that it has read for durable, though a killed daemon may have left them in a cache.
    CacheTakenForMedia,
    /// After an unclean start hot regions are not taken for out of sync.
    HotForgotten,
    /// A page of the intent that fails its check is taken for one without hot regions.
    DamagedPageIsCold,
    /// At a clean stop the volume is said to be clean before its tracks are saved.
    CleanBeforeTracks,
}

#[cfg(feature = "bugs")]
thread_local! {
    static PRESENT: std::cell::Cell<Option<Bug>> = const { std::cell::Cell::new(None) };
}

/// Puts a bug in (or takes it out with `None`) for the calling thread.
#[cfg(feature = "bugs")]
pub fn plant(bug: Option<Bug>) {
    PRESENT.set(bug);
}

/// Whether the bug was put in.
#[inline]
pub(crate) fn present(bug: Bug) -> bool {
    #[cfg(feature = "bugs")]
    return PRESENT.get() == Some(bug);
    #[cfg(not(feature = "bugs"))]
    {
        let _ = bug;
        false
    }
}
