//! Values in a configuration file: numbers within their limits, sizes, and absolute paths.

use std::path::PathBuf;

use serde::Deserialize;

use super::limits::{self, Limit};

/// Longest path that a configuration may name, as `PATH_MAX` less its end.
const PATH_BYTES_MAX: usize = 4095;

/// A number in a file: an integer, or a string that is a size.
#[derive(Deserialize)]
#[serde(untagged, expecting = "expected a whole number that is not negative, or a size such as \"64KiB\"")]
enum Number {
    Whole(u64),
    Size(String),
}

fn number<'de, D: serde::Deserializer<'de>>(deserializer: D, limit: Limit) -> Result<u64, D::Error> {
    let value = match Number::deserialize(deserializer)? {
        Number::Whole(value) => value,
        Number::Size(text) => limits::parse_size(&text).map_err(serde::de::Error::custom)?,
    };
    limit.refusal(value).map_or(Ok(value), |why| Err(serde::de::Error::custom(why)))
}

macro_rules! in_limit {
    ($($name:ident: $type:ty = $limit:ident;)*) => {$(
        pub(super) fn $name<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<$type, D::Error> {
            number(deserializer, limits::$limit)?.try_into().map_err(serde::de::Error::custom)
        }
    )*};
}

in_limit! {
    track_size_in_limit: u64 = TRACK_SIZE;
    region_size_in_limit: u64 = REGION_SIZE;
    queues_in_limit: u16 = QUEUES;
    depth_in_limit: u16 = DEPTH;
    image_pool_in_limit: u64 = IMAGE_POOL;
    drain_window_in_limit: u16 = DRAIN_WINDOW;
    bandwidth_limit_in_limit: u64 = BANDWIDTH_LIMIT;
    run_timer_in_limit: u64 = RUN_TIMER_MS;
    increment_timer_in_limit: u64 = INCREMENT_TIMER_MS;
    collision_wait_in_limit: u64 = COLLISION_WAIT_MS;
}

pub(super) fn path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<PathBuf, D::Error> {
    let path = String::deserialize(deserializer)?;
    let why = if !path.starts_with('/') {
        "is not an absolute path"
    } else if path.contains('\0') {
        "has a zero byte in it"
    } else if path.len() > PATH_BYTES_MAX {
        "is too long a path"
    } else {
        return Ok(PathBuf::from(path));
    };
    Err(serde::de::Error::custom(format!("\"{}\" {why}", limits::quote(&path))))
}

pub(super) fn some_path<'de, D: serde::Deserializer<'de>>(deserializer: D) -> Result<Option<PathBuf>, D::Error> {
    path(deserializer).map(Some)
}
