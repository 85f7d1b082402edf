//! Properties of the parser over generated input: it never panics, what it accepts is inside all limits, what it
//! refuses it refuses in one short line, and what the client writes it reads back.

use farpoint::control::rpc::{self, Command, Id};
use farpoint::controller::api::{
    CollisionPolicy, Create, Down, Events, Many, Nothing, One, RemoveDevice, Request, Selection, Set, SettingsChange,
    Start, Until, Wait,
};
use proptest::collection::{hash_set, vec};
use proptest::option;
use proptest::prelude::*;

fn name() -> impl Strategy<Value = String> {
    "[A-Za-z0-9_][A-Za-z0-9._-]{0,63}"
}

fn names(least: usize) -> impl Strategy<Value = Vec<String>> {
    hash_set(name(), least..=64).prop_map(|names| names.into_iter().collect())
}

fn change() -> impl Strategy<Value = SettingsChange> {
    let policy = prop_oneof![Just(CollisionPolicy::KeepBeforeImage), Just(CollisionPolicy::SendFirst)];
    let limit = prop_oneof![Just(0), 65_536..=1_u64 << 40];
    let timers = (option::of(1..=60_000_u64), option::of(1_000..=86_400_000_u64), option::of(1..=60_000_u64));
    (policy, option::of(limit), timers).prop_map(|(policy, bandwidth_limit, timers)| SettingsChange {
        collision_policy: Some(policy),
        bandwidth_limit,
        run_timer_ms: timers.0,
        increment_timer_ms: timers.1,
        collision_wait_ms: timers.2,
        autostart: timers.0.map(|ms| ms % 2 == 0),
    })
}

fn request() -> impl Strategy<Value = Request> {
    let until = prop_oneof![Just(Until::Drained), Just(Until::InSync), Just(Until::Normal)];
    let many = || names(1).prop_map(|volumes| Many { volumes });
    prop_oneof![
        (name(), any::<(bool, bool)>()).prop_map(|(volume, (force, in_sync))| Request::Create(Create {
            volume,
            force,
            in_sync
        })),
        name().prop_map(|volume| Request::Delete(One { volume })),
        name().prop_map(|volume| Request::Up(One { volume })),
        (name(), any::<bool>()).prop_map(|(volume, force)| Request::Down(Down { volume, force })),
        names(0).prop_map(|volumes| Request::Status(Selection { volumes })),
        Just(Request::Devices(Nothing {})),
        any::<(u32, bool)>().prop_map(|(number, force)| {
            Request::RemoveDevice(RemoveDevice { device: format!("/dev/ublkb{number}"), force })
        }),
        (names(1), option::of(1..=60_000_u64))
            .prop_map(|(volumes, run_timer_ms)| Request::Start(Start { volumes, run_timer_ms })),
        many().prop_map(Request::Run),
        many().prop_map(Request::IncrementComplete),
        many().prop_map(Request::Abort),
        (names(1), until, option::of(1..=31_536_000_000_u64))
            .prop_map(|(volumes, until, timeout_ms)| Request::Wait(Wait { volumes, until, timeout_ms })),
        many().prop_map(Request::Pause),
        many().prop_map(Request::Resume),
        (names(1), change()).prop_map(|(volumes, settings)| Request::Set(Set { volumes, settings })),
        any::<(bool, bool)>().prop_map(|(now, statistics)| Request::Events(Events { now, statistics })),
    ]
}

fn id() -> impl Strategy<Value = Id> {
    prop_oneof![any::<i64>().prop_map(Id::Number), "\\PC{0,32}".prop_map(Id::Text)]
}

fn assert_sound(line: &[u8]) {
    match rpc::parse(line) {
        Ok(Command { request, .. }) => assert_eq!(request.check(), Ok(())),
        Err(refusal) => {
            let answer = rpc::refusal_line(&refusal);
            assert!(answer.len() < 8192, "{}", String::from_utf8_lossy(&answer));
            assert_eq!(answer.iter().position(|byte| *byte == b'\n'), Some(answer.len() - 1));
            let message = refusal.message;
            let answer: serde_json::Value = serde_json::from_slice(&answer).expect("a refusal is JSON");
            assert!(answer["error"]["message"].is_string());
            assert!(!message.is_empty() && !message.chars().any(char::is_control), "{message:?}");
        }
    }
}

proptest! {
    #[test]
    fn what_the_client_writes_is_what_the_server_reads(id in id(), request in request()) {
        let line = rpc::request_line(&id, &request);
        prop_assume!(line.len() <= rpc::LINE_BYTES_MAX);
        let line = line.strip_suffix(b"\n").expect("a line ends");
        prop_assert_eq!(rpc::parse(line), Ok(Command { id, request }));
    }

    #[test]
    fn any_bytes_are_answered(line in vec(any::<u8>(), 0..300)) {
        assert_sound(&line);
    }

    #[test]
    fn any_text_is_answered(line in "\\PC{0,200}") {
        assert_sound(line.as_bytes());
    }

    #[test]
    fn a_damaged_request_is_answered(
        id in id(),
        request in request(),
        damages in vec((any::<prop::sample::Index>(), any::<u8>()), 1..4),
        end in any::<prop::sample::Index>(),
    ) {
        let mut line = rpc::request_line(&id, &request);
        for (at, byte) in damages {
            let at = at.index(line.len());
            line[at] = byte;
        }
        assert_sound(&line);
        line.truncate(end.index(line.len()));
        assert_sound(&line);
    }

    #[test]
    fn any_params_are_answered(method in "[a-z-]{0,20}|status|set|wait|start|create", params in json()) {
        let line = serde_json::json!({"jsonrpc": "2.0", "id": 1, "method": method, "params": params});
        assert_sound(line.to_string().as_bytes());
    }

    #[test]
    fn the_client_takes_any_answer(line in vec(any::<u8>(), 0..300)) {
        let _ = rpc::parse_message(&line);
    }
}

fn json() -> impl Strategy<Value = serde_json::Value> {
    let key = "volumes?|until|timeout_ms|settings|run_timer_ms|force|now|\\PC{0,5}";
    let leaf = prop_oneof![
        Just(serde_json::Value::Null),
        any::<bool>().prop_map(Into::into),
        any::<i64>().prop_map(Into::into),
        any::<f64>().prop_map(Into::into),
        "\\PC{0,70}".prop_map(Into::into),
    ];
    leaf.prop_recursive(4, 32, 5, move |inner| {
        prop_oneof![
            vec(inner.clone(), 0..5).prop_map(Into::into),
            prop::collection::hash_map(key, inner, 0..5)
                .prop_map(|map| serde_json::Value::Object(map.into_iter().collect())),
        ]
    })
}
