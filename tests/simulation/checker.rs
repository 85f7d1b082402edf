//! The judge. It knows nothing of the code under test: it sees the log of the host's writes, each with the time of its
//! issue and of its answer on one global counter, and images of the devices; from these alone it says whether a promise
//! was broken. Its time is linear in the sectors and in the writes since the image.

use std::fmt;

/// What a sector holds: which write put it there, and for which sector that write meant it.
///
/// A discarded sector reads as zeroes, but keeps the name of the write that zeroed it, which only the judge looks at.
#[derive(Clone, Copy, PartialEq, Eq)]
pub struct Stamp(u64);

const ZERO: u64 = 1 << 63;

impl Stamp {
    /// Of a secondary that was never written.
    pub const BLANK: Self = Self(!ZERO);

    pub fn new(write: u32, volume: usize, sector: usize, zero: bool) -> Self {
        let place = (volume as u64) << 20 | sector as u64;
        Self(u64::from(write) | place << 32 | if zero { ZERO } else { 0 })
    }

    pub fn is_zero(self) -> bool {
        self.0 & ZERO != 0
    }

    fn write(self) -> usize {
        (self.0 & 0xffff_ffff) as usize
    }

    fn is_for(self, volume: usize, sector: usize) -> bool {
        (self.0 & !ZERO) >> 32 == ((volume as u64) << 20 | sector as u64)
    }
}

impl fmt::Debug for Stamp {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if *self == Self::BLANK {
            return f.write_str("blank");
        }
        let place = (self.0 & !ZERO) >> 32;
        write!(f, "write {} for {}:{}", self.write(), place >> 20, place & 0xf_ffff)?;
        if self.is_zero() { f.write_str(" (zeroes)") } else { Ok(()) }
    }
}

/// A broken promise.
#[derive(Debug, Clone)]
pub struct Violation {
    pub promise: &'static str,
    pub text: String,
}

impl Violation {
    pub fn new(promise: &'static str, text: impl Into<String>) -> Self {
        Self { promise, text: text.into() }
    }
}

impl fmt::Display for Violation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.promise, self.text)
    }
}

/// One write of the host, a discard included.
#[derive(Debug, Clone)]
struct Write {
    writer: usize,
    sequence: u32,
    volume: usize,
    start: usize,
    count: usize,
    issued: u64,
    /// `u64::MAX` until it is answered.
    answered: u64,
    /// In microseconds of simulated time, to judge the lag.
    answered_us: u64,
    ok: bool,
}

impl fmt::Display for Write {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { writer, sequence, volume, start, count, issued, .. } = self;
        write!(f, "writer {writer} no. {sequence}, {volume}:{start}+{count}, issued at {issued}")?;
        match self.answered {
            u64::MAX => f.write_str(", not answered"),
            at => write!(f, ", {} at {at}", if self.ok { "acknowledged" } else { "failed" }),
        }
    }
}

/// The log of all writes.
#[derive(Debug)]
pub struct Checker {
    clock: u64,
    /// By number; 0 stands for what the primaries held at the beginning.
    writes: Vec<Write>,
    /// Per volume and sector, the writes to it in the order of their issue.
    sectors: Vec<Vec<Vec<u32>>>,
}

impl Checker {
    pub fn new(sectors: &[usize]) -> Self {
        let beginning = Write {
            writer: 0,
            sequence: 0,
            volume: 0,
            start: 0,
            count: usize::MAX,
            issued: 0,
            answered: 0,
            answered_us: 0,
            ok: true,
        };
        let sectors = sectors.iter().map(|&count| vec![Vec::new(); count]).collect();
        Self { clock: 0, writes: vec![beginning], sectors }
    }

    /// The next instant of the global counter.
    pub fn tick(&mut self) -> u64 {
        self.clock += 1;
        self.clock
    }

    /// A write is handed to the device. Returns its number.
    pub fn issue(&mut self, writer: usize, sequence: u32, volume: usize, start: usize, count: usize) -> u32 {
        let number = u32::try_from(self.writes.len()).expect("a run is shorter than that");
        let issued = self.tick();
        for sector in &mut self.sectors[volume][start..start + count] {
            sector.push(number);
        }
        let (answered, answered_us) = (u64::MAX, u64::MAX);
        self.writes.push(Write { writer, sequence, volume, start, count, issued, answered, answered_us, ok: false });
        number
    }

    /// The device has answered a write.
    pub fn answer(&mut self, write: u32, ok: bool, now_us: u64) {
        let answered = self.tick();
        let write = &mut self.writes[write as usize];
        (write.answered, write.answered_us, write.ok) = (answered, now_us, ok);
    }

    /// The write that a sector shows; fails if that sector was never written so.
    fn shown(&self, promise: &'static str, volume: usize, sector: usize, stamp: Stamp) -> Result<&Write, Violation> {
        let known = stamp.is_for(volume, sector) && stamp != Stamp::BLANK;
        let write = self.writes.get(stamp.write()).filter(|_| known);
        write
            .filter(|write| {
                stamp.write() == 0
                    || write.volume == volume && (write.start..write.start + write.count).contains(&sector)
            })
            .ok_or_else(|| Violation::new(promise, format!("sector {volume}:{sector} holds {stamp:?}")))
    }

    /// A write that the sector must show, or a later one, and that is certainly newer than `shown`.
    fn newer(&self, volume: usize, sector: usize, shown: &Write, acked: impl Fn(&Write) -> bool) -> Option<&Write> {
        let writes = self.sectors[volume][sector].iter().rev().map(|&number| &self.writes[number as usize]);
        // In the order of issue: before the first that was issued before the shown one was answered, none is newer.
        writes.take_while(|write| write.issued > shown.answered).find(|write| write.ok && acked(write))
    }

    /// P2 and P3 of a point: `images` are what the secondaries of `volumes` hold, `start` is when the command to make
    /// the point was answered.
    pub fn check_point(&self, volumes: &[usize], images: &[Vec<Stamp>], start: u64) -> Result<(), Violation> {
        let mut newest = 0;
        for (&volume, image) in volumes.iter().zip(images) {
            for (sector, &stamp) in image.iter().enumerate() {
                newest = newest.max(self.shown("P2", volume, sector, stamp)?.issued);
            }
        }
        for (promise, until) in [("P3", start), ("P2", newest)] {
            for (&volume, image) in volumes.iter().zip(images) {
                for (sector, &stamp) in image.iter().enumerate() {
                    let shown = self.shown(promise, volume, sector, stamp)?;
                    let Some(missed) = self.newer(volume, sector, shown, |write| write.answered < until) else {
                        continue;
                    };
                    let cause = match promise {
                        "P3" => format!("start was answered at {until}"),
                        _ => format!("the point holds a write issued at {until}"),
                    };
                    let text =
                        format!("sector {volume}:{sector} of the point shows {shown} but lacks {missed}; {cause}");
                    return Err(Violation::new(promise, text));
                }
            }
        }
        Ok(())
    }

    /// P5 of data: the sectors from `start` on, as read, show what the host wrote. `asked` is when the read was issued.
    pub fn check_read(&self, volume: usize, start: usize, data: &[Stamp], asked: u64) -> Result<(), Violation> {
        for (sector, &stamp) in (start..).zip(data) {
            let shown = self.shown("P5", volume, sector, stamp)?;
            if let Some(missed) = self.newer(volume, sector, shown, |write| write.answered < asked) {
                let text = format!("sector {volume}:{sector} reads as {shown} after {missed}");
                return Err(Violation::new("P5", text));
            }
        }
        Ok(())
    }

    /// P6: nothing is under way any more, so both devices are the same, to the sector.
    pub fn check_equal(volume: usize, primary: &[Stamp], secondary: &[Stamp]) -> Result<(), Violation> {
        let differs = primary.iter().zip(secondary).position(|(a, b)| a != b);
        differs.map_or(Ok(()), |sector| {
            let (a, b) = (primary[sector], secondary[sector]);
            Err(Violation::new("P6", format!("sector {volume}:{sector}: the primary holds {a:?}, the secondary {b:?}")))
        })
    }

    /// The lag: the secondary is said to hold all that was acknowledged before `synced_us`.
    pub fn check_lag(&self, volume: usize, secondary: &[Stamp], synced_us: u64) -> Result<(), Violation> {
        if synced_us == 0 {
            return Ok(());
        }
        for (sector, &stamp) in secondary.iter().enumerate() {
            let shown = self.shown("lag", volume, sector, stamp)?;
            if let Some(missed) = self.newer(volume, sector, shown, |write| write.answered_us < synced_us) {
                let text =
                    format!("sector {volume}:{sector} shows {shown} but lacks {missed}, in sync to {synced_us} us");
                return Err(Violation::new("lag", text));
            }
        }
        Ok(())
    }
}
