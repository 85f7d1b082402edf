//! The checker must be able to fail: images spoiled in every way that it is there to find, by hand and from a real run.

use crate::checker::{Checker, Cut, Verdict, Violation};
use crate::history::{UNACKNOWLEDGED, Write};
use crate::sector::{self, Content, SECTOR, Stamp, WriteId};

const SECTORS: usize = 16;
const LAST: Cut = Cut { start_sent: 100, start_answered: 110 };

fn write(issue: u64, ack: u64, volume: u32, lba: u64, sectors: u64) -> Write {
    Write { issue, ack, failed: false, volume, lba, sectors }
}

/// Two writers on two volumes; the second writer's third write is under way at the cut, its fourth came after.
fn log() -> Vec<Vec<Write>> {
    vec![
        vec![write(1, 2, 0, 0, 2), write(5, 6, 1, 0, 1), write(9, 10, 0, 1, 4), write(95, 99, 1, 8, 1)],
        vec![write(3, 4, 1, 4, 4), write(7, 8, 0, 8, 8), write(98, 120, 1, 2, 2), write(121, 122, 0, 0, 1)],
    ]
}

fn put(images: &mut [Vec<u8>], log: &[Vec<Write>], writer: u32, sequence: u64) {
    let id = WriteId { writer, sequence };
    let write = log[writer as usize][usize::try_from(sequence).unwrap_or(0)];
    for lba in write.lba..write.lba + write.sectors {
        put_sector(images, Stamp { write: id, volume: write.volume, lba });
    }
}

fn put_sector(images: &mut [Vec<u8>], stamp: Stamp) {
    let at = usize::try_from(stamp.lba).unwrap_or(0) * SECTOR;
    sector::fill(&mut images[stamp.volume as usize][at..at + SECTOR], &stamp);
}

/// The images of the log's writes named, in their order.
fn images(log: &[Vec<Write>], writes: &[(u32, u64)]) -> Vec<Vec<u8>> {
    let mut images = vec![vec![0; SECTORS * SECTOR]; 2];
    for (writer, sequence) in writes {
        put(&mut images, log, *writer, *sequence);
    }
    images
}

fn check(log: &[Vec<Write>], images: &[Vec<u8>]) -> Verdict {
    Checker::new(&[SECTORS, SECTORS], 2).check(log, LAST, images)
}

type Kind = fn(&Violation) -> bool;

fn expect(what: &str, verdict: &Verdict, kind: Option<Kind>) -> Result<(), String> {
    let found = &verdict.violations;
    let right = match kind {
        None => found.is_empty(),
        Some(kind) => found.iter().any(kind),
    };
    if right { Ok(()) } else { Err(format!("the checker is wrong about {what}: {found:?}")) }
}

/// Cases made by hand.
pub fn by_hand() -> Result<usize, String> {
    let log = log();
    let before = [(0, 0), (1, 0), (0, 1), (1, 1), (0, 2), (0, 3)];
    let without = |gone: (u32, u64)| before.into_iter().filter(|write| *write != gone).collect::<Vec<_>>();
    let with = |more: &[(u32, u64)]| before.iter().chain(more).copied().collect::<Vec<_>>();
    let mut cases: Vec<(&str, Vec<Vec<u8>>, Option<Kind>)> = vec![
        ("all that was acknowledged", images(&log, &before), None),
        ("a write under way as well", images(&log, &with(&[(1, 2)])), None),
        (
            "a lost write that others depend on",
            images(&log, &without((0, 2))),
            Some(|found| {
                matches!(found, Violation::Old { volume: 0, lba: 1, missing: WriteId { writer: 0, sequence: 2 } })
            }),
        ),
        (
            "a late image: the last write before start is missing",
            images(&log, &without((0, 3))),
            Some(|found| matches!(found, Violation::Old { volume: 1, lba: 8, .. })),
        ),
        (
            "a write after the cut",
            images(&log, &with(&[(1, 2), (1, 3)])),
            Some(|found| matches!(found, Violation::TooNew { volume: 0, lba: 0, .. })),
        ),
    ];
    let mut half = images(&log, &before);
    put_sector(&mut half, Stamp { write: WriteId { writer: 1, sequence: 2 }, volume: 1, lba: 3 });
    cases.push(("half a write", half, Some(|found| matches!(found, Violation::Half { volume: 1, lba: 2, .. }))));
    let mut torn = images(&log, &before);
    torn[0][8 * SECTOR + 300] ^= 1;
    cases.push(("a torn sector", torn, Some(|found| matches!(found, Violation::Broken { volume: 0, lba: 8 }))));
    let mut misplaced = images(&log, &before);
    misplaced[0].copy_within(9 * SECTOR..10 * SECTOR, 10 * SECTOR);
    cases.push((
        "a misplaced sector",
        misplaced,
        Some(|found| matches!(found, Violation::Misplaced { volume: 0, lba: 10, .. })),
    ));
    let mut unknown = images(&log, &before);
    put_sector(&mut unknown, Stamp { write: WriteId { writer: 0, sequence: 77 }, volume: 0, lba: 0 });
    cases.push((
        "a write that never was",
        unknown,
        Some(|found| matches!(found, Violation::Unknown { volume: 0, lba: 0, .. })),
    ));
    for (what, images, kind) in &cases {
        expect(what, &check(&log, images), *kind)?;
    }
    Ok(cases.len() + dependent(&log)?)
}

/// P2 by itself: nothing was acknowledged before `start`, but one write that is there depends on one that is not.
fn dependent(log: &[Vec<Write>]) -> Result<usize, String> {
    let cut = Cut { start_sent: 0, start_answered: UNACKNOWLEDGED };
    let mut checker = Checker::new(&[SECTORS, SECTORS], 2);
    let first = checker.clone().check(log, cut, &images(log, &[(0, 0), (1, 0)]));
    expect("a prefix of the writes", &first, None)?;
    let lost = checker.check(log, cut, &images(log, &[(0, 0), (0, 1)]));
    let kind: Kind = |found| matches!(found, Violation::Inconsistent { volume: 1, missing, .. } if missing.writer == 1);
    expect("a lost dependent write", &lost, Some(kind))?;
    let failed = Write { ack: UNACKNOWLEDGED, failed: true, ..write(3, 0, 1, 4, 4) };
    let log = vec![log[0].clone(), vec![failed]];
    let mut part = images(&log, &[(0, 0), (0, 1)]);
    put_sector(&mut part, Stamp { write: WriteId { writer: 1, sequence: 0 }, volume: 1, lba: 5 });
    let mut checker = Checker::new(&[SECTORS, SECTORS], 2);
    expect("a part of a write that failed", &checker.check(&log, cut, &part), None)?;
    Ok(3)
}

/// A point of a real run that passed must not pass when a sector of it is older, torn or empty.
pub fn spoil(checker: &Checker, log: &[Vec<Write>], cut: Cut, images: &[Vec<u8>]) -> Result<(), String> {
    let check = |images: &[Vec<u8>]| checker.clone().check(log, cut, images);
    expect("the last point as it was", &check(images), None)?;
    let (mut lost, mut torn, mut empty) = (0, 0, 0);
    for (volume, sector) in chosen(images) {
        let bytes = sector * SECTOR..(sector + 1) * SECTOR;
        let mut spoiled = images.to_vec();
        spoiled[volume][bytes.start + 100] ^= 0x10;
        expect("a torn sector", &check(&spoiled), Some(|found| matches!(found, Violation::Broken { .. })))?;
        torn += 1;
        let number = u32::try_from(volume).unwrap_or(u32::MAX);
        let older = earlier(log, number, sector as u64, &images[volume][bytes.clone()]);
        if let Some(write) = older {
            sector::fill(&mut spoiled[volume][bytes.clone()], &Stamp { write, volume: number, lba: sector as u64 });
            expect("a sector that is one write old", &check(&spoiled), Some(missing))?;
            lost += 1;
        }
        spoiled[volume][bytes].fill(0);
        expect("a sector that was never sent", &check(&spoiled), Some(missing))?;
        empty += 1;
    }
    println!("the checker found the last point spoiled: {lost} older, {torn} torn, {empty} empty sectors");
    if lost == 0 { Err("no sector of the last point was written twice".to_owned()) } else { Ok(()) }
}

fn missing(found: &Violation) -> bool {
    matches!(found, Violation::Old { .. } | Violation::Inconsistent { .. } | Violation::Half { .. })
}

/// Some sectors of each volume that hold a write.
fn chosen(images: &[Vec<u8>]) -> Vec<(usize, usize)> {
    let written = |image: &Vec<u8>| {
        let whole =
            |sector: &usize| matches!(sector::parse(&image[sector * SECTOR..(sector + 1) * SECTOR]), Content::Whole(_));
        (0..image.len() / SECTOR).step_by(37).filter(whole).take(4).collect::<Vec<_>>()
    };
    images
        .iter()
        .enumerate()
        .flat_map(|(volume, image)| written(image).into_iter().map(move |at| (volume, at)))
        .collect()
}

/// The write that the sector held before the one it shows.
fn earlier(log: &[Vec<Write>], volume: u32, lba: u64, sector: &[u8]) -> Option<WriteId> {
    let Content::Whole(stamp) = sector::parse(sector) else { return None };
    let shown = log.get(stamp.write.writer as usize)?.get(usize::try_from(stamp.write.sequence).ok()?)?;
    let ids = (0..).zip(log).flat_map(|(writer, writes)| {
        (0..).zip(writes).map(move |(sequence, write)| (WriteId { writer, sequence }, write))
    });
    let before = ids.filter(|(_, write)| write.covers(volume, lba) && !write.failed && write.issue < shown.issue);
    before.max_by_key(|(_, write)| write.issue).map(|(id, _)| id)
}
