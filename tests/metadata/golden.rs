//! Images of the format as it was written when it was decided. A change of the format shows here, and must then get a
//! version or a feature bit of its own (H34). `UPDATE_GOLDEN=1` writes them anew.

use std::fs;
use std::path::Path;

use farpoint::metadata::media::Way;

use super::history::{Life, TRACKS_PER_REGION, assert_starts, few, look};

fn image(name: &str, runs: usize) -> (Vec<u8>, Life) {
    let mut life = Life::new();
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
    let table = [
        ("new", 0, Way::New, 76_800),
        ("clean", 1, Way::Exact, 8),
        ("unclean", 2, Way::Unclean, 3 * TRACKS_PER_REGION),
    ];
    for (name, runs, way, tracks) in table {
        let (golden, life) = image(name, runs);
        let (superblock, recovery) = look(&golden).expect("readable").expect("a superblock");
        assert_eq!((superblock.name.as_str(), superblock.id), ("db", *b"0123456789abcdef"));
        assert_eq!((recovery.way, recovery.tracks.count()), (way, tracks), "{name}");
        assert_starts(golden, &life.truth, &|| name.to_owned());
    }
}
