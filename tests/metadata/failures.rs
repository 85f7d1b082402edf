//! Every call of the device fails once, with an error and with no space left, and leaves its range old, new or torn.
//! The volume stops there, for good, and a later start finds everything (H9).

use std::path::Path;

use farpoint::intent::{Record, RegionNo};
use farpoint::metadata::MetadataError;
use farpoint::metadata::media::Media;
use nix::libc::{EIO, ENOSPC};

use super::disk::{Failing, Leaves};
use super::history::{Life, assert_starts, few, write_page, write_record};

const LEAVES: [Leaves; 3] = [Leaves::Old, Leaves::New, Leaves::Half];

#[test]
fn every_call_that_fails_is_reported_and_leaves_a_superset() {
    let mut whole = Life::new();
    whole.live(&few()).expect("nothing fails");
    let calls = whole.disk.calls();
    assert!(calls > 50, "{calls}");
    let ways = [EIO, ENOSPC].into_iter().flat_map(|errno| LEAVES.map(|leaves| (errno, leaves)));
    for (call, (errno, leaves)) in (0..calls).flat_map(|call| ways.clone().map(move |way| (call, way))) {
        let mut life = Life::new();
        life.disk.fail(Failing { call, errno, leaves });
        let result = life.live(&few());
        let error = result.expect_err("the call that failed was passed over");
        assert!(matches!(error, MetadataError::Io { .. }), "call {call}: {error}");
        let what = || format!("call {call}, {errno}, {leaves:?}");
        assert_starts(life.disk.content(), &life.truth, &what);
    }
}

#[test]
fn after_a_failed_write_nothing_is_written_any_more() {
    let run = |failing: fn(&Media) -> bool| {
        let mut life = Life::new();
        life.live_until(1, &few()).expect("nothing fails");
        let media = Media::open(Path::new("/metadata"), life.disk.clone()).expect("whole");
        let recovery = media.recovery().expect("readable");
        media.begin(&recovery, true).expect("written");
        let call = life.disk.calls();
        life.disk.fail(Failing { call, errno: EIO, leaves: Leaves::Old });
        assert!(failing(&media), "it was told");
        assert!(media.has_failed());
        let content = life.disk.content();
        assert!(matches!(media.end(&few(), false), Err(MetadataError::Final { .. })));
        assert!(matches!(media.update(|_| {}), Err(MetadataError::Final { .. })));
        assert!(write_page(&media, &[0]).is_err());
        assert!(life.disk.content() == content, "something was written");
    };
    run(|media| write_page(media, &[1]).is_err());
    run(|media| {
        let record = Record { number: 9, tail: 9, unsure: 0, regions: vec![RegionNo(1)] };
        write_record(media, &record).is_err()
    });
    run(|media| media.update(|superblock| superblock.last_increment = 9).is_err());
    run(|media| media.end(&few(), false).is_err());
}
