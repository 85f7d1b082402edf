//! Metadata against crashes, damage and failing devices. Whatever is done to it, a start finds a superset of the tracks
//! that may differ and a number no lower than the last one used, or refuses (P1; H5, H6, H9, H22).

mod crashes;
mod damage;
mod disk;
mod failures;
mod golden;
mod history;
