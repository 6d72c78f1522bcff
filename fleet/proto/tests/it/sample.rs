//! One message of each kind, with every field set. Changing them changes the frozen vectors.

use offramp_proto::*;

pub(crate) fn device() -> DeviceId {
    DeviceId::new("gate-7").unwrap()
}

fn boot() -> BootId {
    BootId([7; 16])
}

fn policy() -> PolicyReport {
    PolicyReport {
        name: "threshold".into(),
        version: 2,
        digest: Some(Digest::of(b"component")),
        source: PolicySource::Desired,
        faults: 1,
    }
}

pub(crate) fn birth() -> Birth {
    Birth {
        device: device(),
        boot: boot(),
        started_at: 1_795_000_000_000,
        agent: "0.1.0".into(),
        model: ModelFacts {
            name: "revcol-fashion".into(),
            version: 1,
            digest: Digest::of(b"model.toml"),
            classes: vec!["sandal".into(), "boot".into()],
            stage_macs: vec![1_000, 2_000],
        },
        capabilities: vec!["tract".into()],
        told: 0,
    }
}

pub(crate) fn birth_told_again() -> Birth {
    Birth { told: 3, ..birth() }
}

pub(crate) fn death() -> Death {
    Death {
        device: device(),
        boot: boot(),
    }
}

pub(crate) fn summary() -> Summary {
    Summary {
        device: device(),
        boot: boot(),
        sequence: Sequence(41),
        window: Window {
            start: 1_795_000_000_000,
            end: 1_795_000_060_000,
        },
        generation: Generation(3),
        frames: 100,
        dropped: 1,
        exits: vec![ExitUse { taken: 60 }, ExitUse { taken: 40 }],
        cost: Cost {
            macs: 150_000,
            audit_macs: 4_000,
            full_macs: 300_000,
            stage_us: 90_000,
            overhead_us: 800,
        },
        audits: Audits {
            run: 2,
            disagreements: 1,
            bound: 0.5,
        },
        learner: LearnerReport {
            updates: 30,
            gated: 2,
            rollbacks: 0,
            distance: vec![0.25, 0.0],
        },
        guard: None,
        control: None,
        drift: None,
        classes: vec![ClassCount { class: 1, count: 90 }],
        policy: policy(),
        outbox: 5,
        temperature: Some(41.5),
        watts: None,
        hurried: 0,
        cameras: Vec::new(),
        engines: Vec::new(),
    }
}

/// A summary of two cameras.
pub(crate) fn summary_with_cameras() -> Summary {
    let gate = CameraReport {
        name: "gate".into(),
        frames: 60,
        dropped: 2,
        hurried: 3,
        exits: vec![50, 10],
        macs: 90_000,
        full_macs: 180_000,
        audits: 2,
        disagreements: 1,
        loss: 0.0078125,
        loss_bound: 0.03125,
        paused: false,
    };
    let yard = CameraReport {
        name: "yard".into(),
        frames: 40,
        exits: vec![30, 10],
        paused: true,
        ..CameraReport::default()
    };
    Summary {
        hurried: 3,
        cameras: vec![gate, yard],
        engines: vec!["fused".into(), "onnxruntime/cuda".into()],
        ..summary_with_guard()
    }
}

/// A summary with what came after the first vectors were frozen.
pub(crate) fn summary_with_guard() -> Summary {
    Summary {
        guard: Some(GuardReport {
            threshold: 0.75,
            temperatures: vec![1.25],
            loss: -0.0625,
            loss_bound: 0.03125,
            audits: 256,
            promotions: 1,
            paused: false,
            contexts: 2,
            bytes: 1_500_000,
        }),
        ..summary()
    }
}

/// A summary that tells what learning is worth.
pub(crate) fn summary_with_control() -> Summary {
    Summary {
        control: Some(ControlReport {
            audits: 256,
            learned: Arm {
                cost: 0.375,
                loss: 0.015625,
            },
            frozen: Arm {
                cost: 0.625,
                loss: -0.0625,
            },
            error: 0.03125,
        }),
        watts: Some(7.5),
        drift: Some(0.125),
        ..summary_with_cameras()
    }
}

/// A desired state with what came after the first vectors were frozen.
pub(crate) fn desired_with_budget() -> Desired {
    Desired {
        learner: LearnerSettings {
            accuracy_budget: Some(0.015625),
            cost_ceiling: Some(0.5),
            ..LearnerSettings::default()
        },
        ..desired()
    }
}

pub(crate) fn event() -> Event {
    Event {
        device: device(),
        boot: boot(),
        sequence: Sequence(42),
        at: 1_795_000_000_500,
        kind: "policy-swapped".into(),
        message: "threshold 2 decides from frame 1200 on".into(),
        facts: [("frames_lost".to_string(), "0".to_string())].into(),
    }
}

pub(crate) fn reported() -> Reported {
    Reported {
        device: device(),
        boot: boot(),
        at: 1_795_000_000_600,
        generation: Generation(3),
        policy: policy(),
        refused: Some("generation 4: the policy asks for 4 GiB".into()),
        refused_generation: None,
        trusts: Vec::new(),
    }
}

pub(crate) fn reported_with_generation() -> Reported {
    Reported {
        refused_generation: Some(Generation(4)),
        ..reported()
    }
}

pub(crate) fn desired_of_its_own() -> Desired {
    Desired {
        policy: None,
        own_policy: true,
        ..desired()
    }
}

fn keys() -> Vec<PublicKey> {
    [3, 4].map(|seed| SigningKey::from_seed(&[seed; 32]).public()).into()
}

pub(crate) fn reported_with_keys() -> Reported {
    Reported {
        trusts: keys(),
        ..reported_with_generation()
    }
}

pub(crate) fn desired_with_keys() -> Desired {
    Desired {
        keys: keys(),
        ..desired_with_log()
    }
}

pub(crate) fn desired_with_log() -> Desired {
    Desired {
        log: Some(LogLevel::Debug),
        ..desired_with_budget()
    }
}

pub(crate) fn desired_with_model() -> Desired {
    Desired {
        model: Some(DesiredModel {
            name: "revcol-fashion".into(),
            version: 2,
            digest: Digest::of(b"package"),
            size: 1_234_567,
            url: Some("https://models.example/revcol-fashion-2.tar".into()),
        }),
        ..desired_with_keys()
    }
}

pub(crate) fn desired() -> Desired {
    Desired {
        device: device(),
        generation: Generation(3),
        issued_at: 1_795_000_000_400,
        policy: Some(DesiredPolicy {
            name: "threshold".into(),
            version: 2,
            digest: Digest::of(b"component"),
            size: 11_500,
            parameters: [
                ("threshold".to_string(), Parameter::Number(0.75)),
                ("patience".to_string(), Parameter::Integer(2)),
                ("quiet".to_string(), Parameter::Flag(true)),
                ("label".to_string(), Parameter::Text("night".into())),
            ]
            .into(),
        }),
        own_policy: false,
        model: None,
        learner: LearnerSettings {
            enabled: Some(true),
            rate: Some(0.25),
            audit_rate: Some(0.5),
            accuracy_budget: None,
            cost_ceiling: None,
        },
        log: None,
        keys: Vec::new(),
    }
}

pub(crate) fn policy_statement() -> PolicyStatement {
    PolicyStatement {
        name: "threshold".into(),
        version: 2,
        digest: Digest::of(b"component"),
        size: 11_500,
        contract: "offramp:policy@1.1.0".into(),
    }
}

pub(crate) fn request() -> ArtifactRequest {
    ArtifactRequest {
        digest: Digest::of(b"component"),
        offset: CHUNK as u64,
        chunks: 1,
    }
}

pub(crate) fn request_of_several() -> ArtifactRequest {
    ArtifactRequest {
        chunks: 16,
        ..request()
    }
}

pub(crate) fn chunk() -> ArtifactChunk {
    let data = b"the rest of the component".to_vec();
    let total = (CHUNK + data.len()) as u64;
    ArtifactChunk {
        digest: Digest::of(b"component"),
        offset: CHUNK as u64,
        total,
        hash: Digest::of(&data),
        data,
    }
}

pub(crate) fn trace_sample() -> TraceSample {
    TraceSample {
        device: birth().device,
        boot: birth().boot,
        trace: b"OFTR and so on".to_vec(),
    }
}

pub(crate) fn renewal_request() -> RenewalRequest {
    RenewalRequest {
        device: device(),
        request: "-----BEGIN CERTIFICATE REQUEST-----".into(),
        proof: "-----BEGIN CERTIFICATE REQUEST----- of before".into(),
    }
}

pub(crate) fn renewal_answer() -> RenewalAnswer {
    RenewalAnswer {
        request: Digest::of(renewal_request().request.as_bytes()),
        certificate: Some("-----BEGIN CERTIFICATE-----".into()),
        refused: None,
    }
}

pub(crate) fn renewal_refused() -> RenewalAnswer {
    RenewalAnswer {
        certificate: None,
        refused: Some("the key in use is none of this device".into()),
        ..renewal_answer()
    }
}
