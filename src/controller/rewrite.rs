//! A volume's file with some settings changed and everything else as the administrator wrote it: comments, order, and
//! keys at their defaults that he left out.

use super::api::{Failure, FailureKind, SettingsChange};
use toml_edit::{DocumentMut, Value, value};

/// `text` with the settings that `change` names.
pub(super) fn changed(text: &str, change: &SettingsChange) -> Result<String, Failure> {
    let failed = |why: String| Failure::new(FailureKind::Failed, why);
    let mut document: DocumentMut = text.parse().map_err(|_| failed("it is not TOML; correct it".to_owned()))?;
    // A setting has the same name in a request and in a file.
    let settings = serde_json::to_value(change).map_err(|error| failed(error.to_string()))?;
    for (key, setting) in settings.as_object().into_iter().flatten() {
        let new: Value = match (setting.as_i64(), setting.as_str(), setting.as_bool()) {
            (Some(number), ..) => number.into(),
            (_, Some(word), _) => word.into(),
            (.., Some(whether)) => whether.into(),
            _ => return Err(failed(format!("{key} has a value that cannot be written; report this as a bug"))),
        };
        match document.get_mut(key).and_then(|item| item.as_value_mut()) {
            Some(old) => {
                // What stands before and behind it on its line.
                let around = old.decor().clone();
                *old = new;
                *old.decor_mut() = around;
            }
            None => drop(document.insert(key, value(new))),
        }
    }
    Ok(document.to_string())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::controller::api::CollisionPolicy;

    #[test]
    fn only_the_settings_named_change() {
        let text = "# the database's disk\nprimary = '/dev/a' # fast\nsecondary = '/dev/b'\n\n\
                    bandwidth_limit = \"1MiB\"   # the link is slow\nqueues = 2\n# the end\n";
        let change = SettingsChange {
            bandwidth_limit: Some(65536),
            collision_policy: Some(CollisionPolicy::SendFirst),
            autostart: Some(true),
            ..SettingsChange::default()
        };
        let expected = "# the database's disk\nprimary = '/dev/a' # fast\nsecondary = '/dev/b'\n\n\
                        bandwidth_limit = 65536   # the link is slow\nqueues = 2\n\
                        autostart = true\ncollision_policy = \"send-first\"\n# the end\n";
        assert_eq!(changed(text, &change), Ok(expected.to_owned()));
        assert_eq!(changed(expected, &change), Ok(expected.to_owned()), "a second time changes nothing");
        assert_eq!(changed(text, &SettingsChange::default()), Ok(text.to_owned()));
        assert!(changed("primary", &change).is_err());
    }
}
