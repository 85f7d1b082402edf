//! `farpoint events`: the stream of what exists and what changes, for programs that react to it. One line per event,
//! flushed at once.

use std::fmt::Write;
use std::time::SystemTime;

use clap::Args;

use super::context::{Context, Outcome, Stop};
use super::units;
use crate::control::rpc::Message;
use crate::controller::api::{self, Event, EventAction, Failure, FailureKind, Request};

#[derive(Debug, Args)]
pub(super) struct Events {
    /// Print what exists and end
    #[arg(long)]
    now: bool,
    /// Print counters too, as they change
    #[arg(long)]
    statistics: bool,
    /// Print the time of each line
    #[arg(long)]
    timestamps: bool,
}

impl Events {
    pub(super) fn run(self, context: &Context) -> Outcome {
        let request = Request::Events(api::Events { now: self.now, statistics: self.statistics });
        let mut client = context.connect()?;
        client.send(&request, context.deadline())?;
        loop {
            match client.receive(context.deadline())? {
                Some(Message::Event(event)) => self.print(context, &event)?,
                Some(Message::Reply(_, result)) => return Ok(result.map(|_| 0)?),
                None => {
                    let message = "the time given to wait for events is over";
                    return Err(Failure::new(FailureKind::TimedOut, message).into());
                }
            }
        }
    }

    fn print(&self, context: &Context, event: &Event) -> Result<(), Stop> {
        let time = self.timestamps.then(|| units::timestamp(SystemTime::now()));
        let line = if context.globals.json { json(event, time)? } else { human(event, time) };
        context.print(&line)
    }
}

fn json(event: &Event, time: Option<String>) -> Result<String, Failure> {
    #[derive(serde::Serialize)]
    struct Timed<'a> {
        #[serde(skip_serializing_if = "Option::is_none")]
        time: Option<String>,
        #[serde(flatten)]
        event: &'a Event,
    }
    serde_json::to_string(&Timed { time, event }).map_err(|error| super::unexpected(&error))
}

/// `change volume vol0 state:normal lag:0s`; what exists already ends with `exists -`.
fn human(event: &Event, time: Option<String>) -> String {
    let mut line = time.map_or_else(String::new, |time| format!("{time} "));
    line.push_str(match event.action {
        EventAction::Exists => "exists",
        EventAction::Create => "create",
        EventAction::Change => "change",
        EventAction::Destroy => "destroy",
    });
    let names = [&event.object, &event.name];
    for name in names.into_iter().filter(|name| !name.is_empty()) {
        line.push(' ');
        line.push_str(&units::word(name));
    }
    for (key, value) in &event.fields {
        let _ = write!(line, " {}:{}", units::word(key), units::word(value));
    }
    line
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn events_are_lines_of_words() {
        let fields = vec![("state".to_owned(), "normal".to_owned()), ("reason".to_owned(), "a b\n".to_owned())];
        let mut event = Event { action: EventAction::Exists, object: "volume".into(), name: "vol0".into(), fields };
        assert_eq!(human(&event, None), r#"exists volume vol0 state:normal reason:"a b\u{a}""#);
        let json = json(&event, Some("T".into())).expect("serializable");
        let expected = r#"{"time":"T","action":"exists","object":"volume","name":"vol0","#;
        assert_eq!(json, format!(r#"{expected}"fields":{{"state":"normal","reason":"a b\n"}}}}"#));
        event = Event { action: EventAction::Exists, object: "-".into(), name: String::new(), fields: Vec::new() };
        assert_eq!(human(&event, Some("T".into())), "T exists -");
    }
}
