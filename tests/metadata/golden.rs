//! Images of the format as it was written when it was decided. A change of the format shows here, and must then get a
//! version or a feature bit of its own (H34). `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::Path;

use farpoint::metadata::media::Way;

use super::history::{Kind, Life, TRACKS_PER_REGION, assert_starts, few, look};

fn image(name: &str, kind: Kind, runs: usize) -> (Vec<u8>, Life) {
    let mut life = Life::new(kind);
    life.live_until(runs, &few()).expect("nothing fails");
    let mut content = life.disk.content();
    // Zeroes at the end say nothing.
    content.truncate(content.iter().rposition(|byte| *byte != 0).expect("something") + 1);
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden").join(format!("media-v1-{name}.bin"));
    if std::env::var_os("UPDATE_GOLDEN").is_some() {
        fs::write(&path, &content).expect("written");
    }
    let golden = fs::read(&path).expect("a golden image; UPDATE_GOLDEN=1 writes it");
    let first = golden.iter().zip(&content).position(|(one, two)| one != two);
    assert!(golden == content, "{name}: the format has changed, first at {first:?}");
    (golden, life)
}

#[test]
fn images_of_the_first_version_are_read_and_written_as_ever() {
    let table: [(&str, Kind, usize, Way, u64); 5] = [
        ("new", Kind::Page, 0, Way::New, 76_800),
        ("clean", Kind::Page, 1, Way::Exact, 4),
        ("unclean", Kind::Page, 2, Way::Unclean, 3 * TRACKS_PER_REGION),
        ("log-clean", Kind::Log, 1, Way::Exact, 8),
        ("log-unclean", Kind::Log, 2, Way::Unclean, 3 * TRACKS_PER_REGION),
    ];
    for (name, kind, runs, way, tracks) in table {
        let (golden, life) = image(name, kind, runs);
        let (superblock, recovery) = look(&golden).expect("readable").expect("a superblock");
        assert_eq!((superblock.name.as_str(), superblock.id), ("db", *b"0123456789abcdef"));
        assert_eq!((recovery.way, recovery.tracks.count()), (way, tracks), "{name}");
        assert_starts(golden, &life.truth, &|| name.to_owned());
    }
}
