//! The superblock: whose volume this is, where everything lies, which increments there were, how the last run ended.
//!
//! One page, kept twice. All numbers little-endian:
//!
//! ```text
//! offset  size
//!      0     8  magic "FARPOINT"
//!      8     4  format version, 1
//!     12     4  CRC32C of the page but these four bytes
//!     16     8  sequence: of two valid slots the higher one counts
//!     24     4  features that an older farpoint may ignore
//!     28     4  features that an older farpoint may look at but not serve
//!     32     4  features that an older farpoint must refuse
//!     36     4  flags: 1 clean, 2 full copy needed, 4 an increment has completed, 8 the last full
//!               copy was not finished
//!     40    16  id of the volume, random
//!     56    16  lineage: the id of the volume that this history began with
//!     72     8  lineage: its generation
//!     80     4  role: 1 primary
//!     84     4  track size
//!     88     4  region size
//!     92     4  records that the intent log has room for
//!     96     8  size of the primary
//!    104     8  size of the secondary
//!    112     8  size of the file or device that this is on
//!    120     8  number of the last increment begun
//!    128     8  number of the last increment completed
//!    136     8  when that was, milliseconds since 1970 (for display only)
//!    144     8  what the save area must carry to count, 0 if nothing is saved
//!    152     8  offset of the intent pages
//!    160     8  their number
//!    168     8  offset of the save area
//!    176     8  its size
//!    184     2  length of the volume's name, in bytes
//!    186     2  length of the primary's identity
//!    188     2  length of the secondary's identity
//!    190     2  length of the identity of the file or device that this is on
//!    192        the four texts, UTF-8, one after the other; zeroes to the end
//! ```

use std::fmt;
use std::ops::Range;

use super::layout::{self, Layout, PAGE_BYTES, REGION_BYTES_MAX};
use super::medium::Page;
use super::{Completed, Side};
use crate::geometry::Geometry;

const MAGIC: &[u8; 8] = b"FARPOINT";
/// The only version there is.
pub const VERSION: u32 = 1;
const CRC: usize = 12;
const TEXTS: usize = 192;

const CLEAN: u32 = 1;
const FULL_COPY_NEEDED: u32 = 2;
const HAS_COMPLETED: u32 = 4;
const INCOMPLETE: u32 = 8;
const ROLE_PRIMARY: u32 = 1;

/// The intent pages do not say everything: there is a log beside them. Who does not read it loses tracks.
const INTENT_LOG: u32 = 1;
/// Features that this farpoint knows, of each kind.
const KNOWN_FEATURES: Features = Features { compat: 0, ro_compat: 0, incompat: INTENT_LOG };

/// Feature bits, by what an older farpoint does with those that it does not know.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq)]
pub struct Features {
    pub compat: u32,
    pub ro_compat: u32,
    pub incompat: u32,
}

impl Features {
    /// Unknown bits that forbid to serve the volume.
    pub fn not_served(&self) -> u32 {
        self.ro_compat & !KNOWN_FEATURES.ro_compat
    }

    /// Unknown bits that forbid even to look.
    pub fn not_understood(&self) -> u32 {
        self.incompat & !KNOWN_FEATURES.incompat
    }
}

/// What one volume's history began with, and how often it has changed hands. Both say one thing today.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Lineage {
    pub id: [u8; 16],
    pub generation: u64,
}

/// The superblock.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Superblock {
    pub sequence: u64,
    pub features: Features,
    pub id: [u8; 16],
    pub lineage: Lineage,
    pub name: String,
    pub primary: Side,
    pub secondary: Side,
    /// What this is on.
    pub metadata: Side,
    /// In bytes.
    pub track_size: u32,
    /// In bytes.
    pub region_size: u32,
    pub layout: Layout,
    /// Number of the last increment begun, 0 if there was none.
    pub last_increment: u64,
    pub completed: Option<Completed>,
    /// Nobody has served the volume since the save area was written.
    pub clean: bool,
    /// Every track must be copied, whatever the intent pages say.
    pub full_copy_needed: bool,
    /// The secondary has not been a usable copy since its last full copy began.
    pub incomplete: bool,
    /// What the save area must carry, 0 if nothing is saved.
    pub saved: u64,
}

/// Why a page is not a superblock.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Fault {
    /// Zeroes.
    Empty,
    /// Something else altogether.
    Foreign,
    Version(u32),
    /// Features that nobody here understands.
    Features(u32),
    Damaged(&'static str),
}

impl fmt::Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Empty => f.write_str("it is empty"),
            Self::Foreign => f.write_str("it is none"),
            Self::Version(version) => write!(f, "it has the unknown version {version}"),
            Self::Features(bits) => write!(f, "it uses unknown features (bits {bits:#x})"),
            Self::Damaged(why) => f.write_str(why),
        }
    }
}

impl Superblock {
    /// A volume that has never been up: nothing has been copied, and its absent intent pages say so.
    pub fn new(id: [u8; 16], name: &str, sides: [Side; 3], geometry: &Geometry, region_size: u32) -> Self {
        let layout = Layout::new(geometry, region_size.into());
        Self::with_layout(id, name, sides, geometry, region_size, layout)
    }

    /// With areas that are not those that a new volume gets.
    pub fn with_layout(
        id: [u8; 16],
        name: &str,
        sides: [Side; 3],
        geometry: &Geometry,
        region_size: u32,
        layout: Layout,
    ) -> Self {
        let [primary, secondary, metadata] = sides;
        Self {
            sequence: 0,
            features: Features { incompat: INTENT_LOG, ..Features::default() },
            id,
            lineage: Lineage { id, generation: 0 },
            name: name.to_owned(),
            primary,
            secondary,
            metadata,
            // At most 1 MiB.
            track_size: u32::try_from(geometry.track_size()).unwrap_or(u32::MAX),
            region_size,
            layout,
            last_increment: 0,
            completed: None,
            clean: true,
            full_copy_needed: false,
            incomplete: true,
            saved: 0,
        }
    }

    /// Size and tracks of the volume, which decoding has checked.
    pub fn geometry(&self) -> Option<Geometry> {
        Geometry::new(self.primary.size, self.track_size.into()).ok()
    }

    /// Number of regions.
    pub fn regions(&self) -> u64 {
        self.primary.size.div_ceil(self.region_size.into())
    }

    fn texts(&self) -> [&str; 4] {
        [&self.name, &self.primary.identity, &self.secondary.identity, &self.metadata.identity]
    }

    /// Whether name and identities fit into the page. Asked before the first one is written.
    pub fn fits(&self) -> bool {
        self.texts().iter().map(|text| text.len()).sum::<usize>() <= PAGE_BYTES - TEXTS
    }

    /// The page. What does not fit is a bug of the caller, and cut.
    pub fn encode(&self) -> Page {
        let mut page = Page::ZERO;
        let completed = self.completed.unwrap_or(Completed { increment: 0, time_ms: 0 });
        let mut flags = 0;
        for (flag, on) in [
            (CLEAN, self.clean),
            (FULL_COPY_NEEDED, self.full_copy_needed),
            (HAS_COMPLETED, self.completed.is_some()),
            (INCOMPLETE, self.incomplete),
        ] {
            flags |= if on { flag } else { 0 };
        }
        let Features { compat, ro_compat, incompat } = self.features;
        page.put(0, MAGIC);
        for (at, number) in [
            (8, VERSION),
            (24, compat),
            (28, ro_compat),
            (32, incompat),
            (36, flags),
            (80, ROLE_PRIMARY),
            (84, self.track_size),
            (88, self.region_size),
            (92, self.layout.log_slots),
        ] {
            page.put(at, &number.to_le_bytes());
        }
        page.put(40, &self.id);
        page.put(56, &self.lineage.id);
        for (at, number) in [
            (16, self.sequence),
            (72, self.lineage.generation),
            (96, self.primary.size),
            (104, self.secondary.size),
            (112, self.metadata.size),
            (120, self.last_increment),
            (128, completed.increment),
            (136, completed.time_ms),
            (144, self.saved),
            (152, self.layout.intent_offset),
            (160, self.layout.intent_pages),
            (168, self.layout.save_offset),
            (176, self.layout.save_bytes),
        ] {
            page.put(at, &number.to_le_bytes());
        }
        let mut at = TEXTS;
        for (number, text) in self.texts().into_iter().enumerate() {
            let bytes = &text.as_bytes()[..text.len().min(PAGE_BYTES - at)];
            page.put(184 + number * 2, &u16::try_from(bytes.len()).unwrap_or(0).to_le_bytes());
            page.put(at, bytes);
            at += bytes.len();
        }
        let crc = page.checksum(CRC);
        page.put(CRC, &crc.to_le_bytes());
        page
    }

    pub fn decode(page: &Page) -> Result<Self, Fault> {
        if page.is_zero() {
            return Err(Fault::Empty);
        }
        if page.get::<8>(0) != *MAGIC {
            return Err(Fault::Foreign);
        }
        if u32::from_le_bytes(page.get(CRC)) != page.checksum(CRC) {
            return Err(Fault::Damaged("its checksum is wrong"));
        }
        match u32::from_le_bytes(page.get(8)) {
            VERSION => {}
            other => return Err(Fault::Version(other)),
        }
        let number = |at| u32::from_le_bytes(page.get(at));
        let features = Features { compat: number(24), ro_compat: number(28), incompat: number(32) };
        match features.not_understood() {
            0 => decode_body(page, features),
            unknown => Err(Fault::Features(unknown)),
        }
    }
}

/// What follows is written by a program that had the checksum right: a fault here is a bug somewhere, and refused.
fn decode_body(page: &Page, features: Features) -> Result<Superblock, Fault> {
    let small = |at| u32::from_le_bytes(page.get(at));
    let number = |at| u64::from_le_bytes(page.get(at));
    let flags = small(36);
    if flags & !(CLEAN | FULL_COPY_NEEDED | HAS_COMPLETED | INCOMPLETE) != 0 {
        return Err(Fault::Damaged("it has unknown flags"));
    }
    if small(80) != ROLE_PRIMARY {
        return Err(Fault::Damaged("its role is unknown"));
    }
    let mut at = TEXTS;
    let mut text = |number: usize| {
        let len = usize::from(u16::from_le_bytes(page.get(184 + number * 2)));
        let range: Range<usize> = at..at + len;
        at = range.end;
        let text = page.0.get(range).and_then(|bytes| str::from_utf8(bytes).ok());
        text.map(str::to_owned).ok_or(Fault::Damaged("a name in it is not text"))
    };
    let name = text(0)?;
    let superblock = Superblock {
        sequence: number(16),
        features,
        id: page.get(40),
        lineage: Lineage { id: page.get(56), generation: number(72) },
        name,
        primary: Side { identity: text(1)?, size: number(96) },
        secondary: Side { identity: text(2)?, size: number(104) },
        metadata: Side { identity: text(3)?, size: number(112) },
        track_size: small(84),
        region_size: small(88),
        layout: Layout {
            intent_offset: number(152),
            intent_pages: number(160),
            log_slots: small(92),
            save_offset: number(168),
            save_bytes: number(176),
        },
        last_increment: number(120),
        completed: (flags & HAS_COMPLETED != 0).then(|| Completed { increment: number(128), time_ms: number(136) }),
        clean: flags & CLEAN != 0,
        full_copy_needed: flags & FULL_COPY_NEEDED != 0,
        incomplete: flags & INCOMPLETE != 0,
        saved: number(144),
    };
    check(&superblock).map_err(Fault::Damaged)?;
    Ok(superblock)
}

fn check(superblock: &Superblock) -> Result<(), &'static str> {
    let geometry = superblock.geometry().ok_or("its track size is impossible")?;
    let region = u64::from(superblock.region_size);
    if !region.is_power_of_two() || !(geometry.track_size()..=REGION_BYTES_MAX).contains(&region) {
        return Err("its region size is impossible");
    }
    if superblock.features.incompat & INTENT_LOG == 0 {
        return Err("it has no intent log");
    }
    if !superblock.layout.is_sound(layout::regions(&geometry, region), superblock.metadata.size) {
        return Err("its areas do not fit together");
    }
    if superblock.completed.is_some_and(|completed| completed.increment > superblock.last_increment) {
        return Err("an increment has completed that was never begun");
    }
    Ok(())
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use crate::metadata::layout::REGION_BYTES;

    pub(in crate::metadata) fn example() -> Superblock {
        let geometry = Geometry::new(100 << 20, 65536).expect("valid");
        let side = |identity: &str, size| Side { identity: identity.to_owned(), size };
        let metadata = Layout::new(&geometry, REGION_BYTES).bytes();
        let sides = [side("wwid:1", 100 << 20), side("file:2@3.000000004", 101 << 20), side("file:5@6", metadata)];
        let mut superblock = Superblock::new([7; 16], "db", sides, &geometry, 4 << 20);
        superblock.sequence = 4;
        superblock.last_increment = 9;
        superblock.completed = Some(Completed { increment: 8, time_ms: 1_700_000_000_000 });
        superblock
    }

    fn sealed(mut page: Page) -> Page {
        let crc = page.checksum(CRC);
        page.put(CRC, &crc.to_le_bytes());
        page
    }

    #[test]
    fn what_is_written_is_read_and_every_changed_byte_is_noticed() {
        let good = example().encode();
        assert_eq!(Superblock::decode(&good), Ok(example()));
        for at in 0..PAGE_BYTES {
            let mut page = good.clone();
            page.0[at] ^= 0x10;
            assert!(Superblock::decode(&page).is_err(), "byte {at}");
        }
        assert_eq!(Superblock::decode(&Page::ZERO), Err(Fault::Empty));
    }

    #[test]
    fn other_versions_and_features_are_told_from_damage() {
        let change = |at: usize, value: u32| {
            let mut page = example().encode();
            page.put(at, &value.to_le_bytes());
            Superblock::decode(&sealed(page))
        };
        assert_eq!(change(8, 7), Err(Fault::Version(7)));
        assert_eq!(change(32, 6), Err(Fault::Features(6)));
        assert_eq!(change(32, 0), Err(Fault::Damaged("it has no intent log")));
        assert_eq!(change(24, 6).expect("ignored").features.compat, 6);
        let looked_at = change(28, 6).expect("may be looked at");
        assert_eq!((looked_at.features.not_served(), looked_at.features.not_understood()), (6, 0));
    }

    /// A page whose checksum is right and whose content is not: what a bug, not a disk, would write.
    #[test]
    fn a_well_checked_but_wrong_page_never_panics() {
        for at in 16..PAGE_BYTES {
            for value in [0, 1, 0x7f, 0x80, 0xff] {
                let mut page = example().encode();
                page.0[at] = value;
                if let Ok(superblock) = Superblock::decode(&sealed(page)) {
                    assert!(superblock.geometry().is_some() && superblock.layout.bytes() <= superblock.metadata.size);
                }
            }
        }
    }

    #[test]
    fn names_that_do_not_fit_are_noticed_before_they_are_written() {
        let mut long = example();
        assert!(long.fits());
        long.primary.identity = "x".repeat(4000);
        assert!(!long.fits());
        assert!(Superblock::decode(&long.encode()).is_ok(), "cut, but no panic");
    }
}
