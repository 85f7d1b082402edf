//! `dump` and `check`: what is on media for one volume, read from there without the daemon. Nothing is written.

use std::fmt::Write;
use std::path::PathBuf;
use std::time::{Duration, SystemTime};

use clap::Args;
use serde_json::{Value, json};

use super::context::{Context, Outcome};
use super::units;
use crate::controller::api::Failure;
use crate::controller::limits;
use crate::metadata::MetadataError;
use crate::metadata::inspect::{Findings, inspect};
use crate::metadata::media::Way;
use crate::metadata::superblock::{Superblock, VERSION};
use crate::storage;

/// Exit code of `check` for metadata that is damaged.
const DAMAGED: u8 = 9;
const SCHEMA: &str = "farpoint.metadata/1";

#[derive(Debug, Args)]
pub(super) struct Place {
    /// Name of a volume, or, with a '/' in it, a file or device that holds metadata
    #[arg(value_name = "NAME|PATH")]
    place: String,
}

/// What was found, and who has it open.
struct Looked {
    path: PathBuf,
    by: Option<String>,
    found: Result<Findings, MetadataError>,
}

impl Place {
    fn path(&self, context: &Context) -> Result<PathBuf, Failure> {
        if self.place.contains('/') {
            return super::lifecycle::absolute(self.place.as_ref());
        }
        limits::check_name(&self.place)?;
        let config = context.config()?;
        Ok(config.metadata_path(&self.place, &config.volume(&self.place)?))
    }

    fn look(&self, context: &Context) -> Result<Looked, Failure> {
        let path = self.path(context)?;
        let (medium, by) = storage::open_read_only(&path)?;
        let found = inspect(&path, &medium);
        Ok(Looked { path, by, found })
    }

    pub(super) fn dump(self, context: &Context) -> Outcome {
        let looked = self.look(context)?;
        let found = looked.found.map_err(Failure::from)?;
        if context.globals.json {
            context.print(&document(&looked.path, looked.by.as_deref(), &found).to_string())?;
        } else {
            context.print(&text(&looked.path, looked.by.as_deref(), &found))?;
        }
        Ok(0)
    }

    pub(super) fn check(self, context: &Context) -> Outcome {
        let looked = self.look(context)?;
        let (damages, start) = match looked.found {
            Ok(found) => (found.damages(), Some(next_start(&found))),
            Err(error @ MetadataError::Damaged { .. }) => (vec![error.to_string()], None),
            Err(error) => return Err(Failure::from(error).into()),
        };
        let path = looked.path.display().to_string();
        if context.globals.json {
            let document = json!({
                "schema": SCHEMA, "path": path, "in_use_by": looked.by, "sound": damages.is_empty(),
                "damages": damages, "next_start": start,
            });
            context.print(&document.to_string())?;
        } else {
            let mut lines: Vec<String> = damages.iter().map(|damage| units::one_line(damage, 500)).collect();
            if damages.is_empty() && !context.globals.quiet {
                lines.push(format!("{} is sound", units::word(&path)));
            }
            if let Some(start) = start.filter(|_| !context.globals.quiet) {
                lines.push(format!("the next start copies {start}"));
            }
            if let Some(by) = &looked.by {
                lines.push(format!("in use by {}: it may have been seen in the middle of a change", units::word(by)));
            }
            if !lines.is_empty() {
                context.print(&lines.join("\n"))?;
            }
        }
        Ok(if damages.is_empty() { 0 } else { DAMAGED })
    }
}

/// What a start would copy, in words.
fn next_start(found: &Findings) -> String {
    let superblock = &found.superblock;
    let tracks = found.recovery.tracks.count();
    let bytes = units::bytes((tracks * u64::from(superblock.track_size)).min(superblock.primary.size));
    match found.recovery.way {
        Way::Exact => format!("{tracks} tracks ({bytes})"),
        Way::Unclean | Way::SavedDamaged => format!("all of {} hot regions ({bytes})", found.recovery.hot.count()),
        Way::New | Way::Everything => format!("everything ({bytes})"),
    }
}

fn way_word(way: Way) -> &'static str {
    match way {
        Way::Exact => "exact",
        Way::New => "new",
        Way::Unclean => "unclean",
        Way::SavedDamaged => "saved-damaged",
        Way::Everything => "everything",
    }
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().fold(String::new(), |mut text, byte| {
        // Writing to a string cannot fail.
        let _ = write!(text, "{byte:02x}");
        text
    })
}

fn slots(found: &Findings) -> Vec<(&'static str, Result<u64, String>)> {
    let sequence = |at: usize| found.slots.0[at].as_ref().map(|slot| slot.sequence).map_err(ToString::to_string);
    vec![("A", sequence(0)), ("B", sequence(1))]
}

fn text(path: &std::path::Path, by: Option<&str>, found: &Findings) -> String {
    let Superblock { layout, completed, .. } = &found.superblock;
    let superblock = &found.superblock;
    let hot = &found.recovery.hot;
    let word = units::word;
    let mut lines = vec![format!(
        "{} metadata:{} format:{VERSION} in-use:{}",
        word(&superblock.name),
        word(&path.display().to_string()),
        units::yes(by.is_some())
    )];
    for (at, (name, sequence)) in slots(found).into_iter().enumerate() {
        let valid = match sequence {
            Ok(sequence) => format!("sequence:{sequence} counts:{}", units::yes(at == found.slot)),
            Err(why) => format!("invalid:{}", word(&why)),
        };
        lines.push(format!(" superblock:{name} {valid}"));
    }
    let (id, lineage) = (hex(&superblock.id), hex(&superblock.lineage.id));
    lines.push(format!(" id:{id} lineage:{lineage} generation:{} role:primary", superblock.lineage.generation));
    for (what, side) in
        [("primary", &superblock.primary), ("secondary", &superblock.secondary), ("metadata", &superblock.metadata)]
    {
        lines.push(format!(" {what}:{} size:{}", word(&side.identity), side.size));
    }
    lines.push(format!(
        " clean:{} full-copy-needed:{} incomplete:{} last-increment:{} last-complete:{} at:{}",
        units::yes(superblock.clean),
        units::yes(superblock.full_copy_needed),
        units::yes(superblock.incomplete),
        superblock.last_increment,
        completed.map_or("none".to_owned(), |completed| completed.increment.to_string()),
        completed.map_or("never".to_owned(), |completed| {
            units::timestamp(SystemTime::UNIX_EPOCH + Duration::from_millis(completed.time_ms))
        }),
    ));
    lines.push(format!(
        " track:{} region:{} regions:{} hot:{} intent-pages:{} damaged:{} absent:{}",
        units::bytes(superblock.track_size.into()),
        units::bytes(superblock.region_size.into()),
        hot.regions,
        hot.count(),
        layout.intent_pages,
        hot.damaged_pages,
        hot.absent_pages,
    ));
    let logged = &found.recovery.logged;
    lines.push(format!(
        " intent-log:{} next:{} counting:{} lost:{} naming:{} damaged:{}",
        layout.log_slots,
        logged.start.next,
        logged.records,
        logged.lost,
        logged.regions.len(),
        units::yes(logged.damaged),
    ));
    lines.push(format!(" start:{} copies:{}", way_word(found.recovery.way), word(&next_start(found))));
    lines.join("\n")
}

fn document(path: &std::path::Path, by: Option<&str>, found: &Findings) -> Value {
    let superblock = &found.superblock;
    let (hot, logged) = (&found.recovery.hot, &found.recovery.logged);
    let side = |side: &crate::metadata::Side| json!({"identity": side.identity, "size": side.size});
    let slots: Vec<Value> = slots(found)
        .into_iter()
        .map(|(name, sequence)| match sequence {
            Ok(sequence) => json!({"slot": name, "valid": true, "sequence": sequence}),
            Err(why) => json!({"slot": name, "valid": false, "why": why}),
        })
        .collect();
    json!({
        "schema": SCHEMA,
        "path": path.display().to_string(),
        "in_use_by": by,
        "format": VERSION,
        "superblocks": slots,
        "counts": if found.slot == 0 { "A" } else { "B" },
        "volume": superblock.name,
        "id": hex(&superblock.id),
        "lineage": {"id": hex(&superblock.lineage.id), "generation": superblock.lineage.generation},
        "role": "primary",
        "primary": side(&superblock.primary),
        "secondary": side(&superblock.secondary),
        "metadata": side(&superblock.metadata),
        "track_size": superblock.track_size,
        "region_size": superblock.region_size,
        "last_increment": superblock.last_increment,
        "last_complete": superblock.completed.map(|completed| completed.increment),
        "last_complete_ms": superblock.completed.map(|completed| completed.time_ms),
        "clean": superblock.clean,
        "full_copy_needed": superblock.full_copy_needed,
        "incomplete": superblock.incomplete,
        "regions": hot.regions,
        "hot_regions": hot.count(),
        "hot": hot.runs().map(|run| (run.start, run.end - 1)).collect::<Vec<_>>(),
        "intent_pages": superblock.layout.intent_pages,
        "damaged_pages": hot.damaged_pages,
        "absent_pages": hot.absent_pages,
        "log": {
            "slots": superblock.layout.log_slots,
            "next": logged.start.next,
            "records": logged.records,
            "lost": logged.lost,
            "regions": logged.regions.len(),
            "damaged": logged.damaged,
        },
        "damages": found.damages(),
        "start": way_word(found.recovery.way),
        "start_tracks": found.recovery.tracks.count(),
    })
}
