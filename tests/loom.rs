#![cfg(farpoint_loom)]
//! x
#[test]
fn t() {
    loom::model(|| {
        let _ = farpoint::tracking::Epoch::new();
    });
}
