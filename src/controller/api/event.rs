//! One event of the stream: what exists, and what changes.

use serde::{Deserialize, Serialize};

/// One line of the event stream, as `drbdsetup events2` has it: first what exists, then what changes.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Event {
    pub action: EventAction,
    /// `volume`, or `-` for the end of the dump.
    pub object: String,
    /// Name of the object; empty for `-`.
    pub name: String,
    /// What is new, as key and value; unchanged keys are left out of a change.
    #[serde(with = "fields")]
    pub fields: Vec<(String, String)>,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum EventAction {
    Exists,
    Create,
    Change,
    Destroy,
}

/// An event's fields are one JSON object in their own order, not a list of pairs.
mod fields {
    use std::fmt;

    use serde::de::{MapAccess, Visitor};
    use serde::{Deserializer, Serializer};

    type Fields = Vec<(String, String)>;

    pub(super) fn serialize<S: Serializer>(fields: &[(String, String)], serializer: S) -> Result<S::Ok, S::Error> {
        serializer.collect_map(fields.iter().map(|(key, value)| (key, value)))
    }

    pub(super) fn deserialize<'de, D: Deserializer<'de>>(deserializer: D) -> Result<Fields, D::Error> {
        struct InOrder;
        impl<'de> Visitor<'de> for InOrder {
            type Value = Fields;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("an object of strings")
            }

            fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Fields, A::Error> {
                let mut fields = Fields::new();
                while let Some(field) = map.next_entry()? {
                    fields.push(field);
                }
                Ok(fields)
            }
        }
        deserializer.deserialize_map(InOrder)
    }
}
