//! The grammar: round trips, spans, and one refusal for every way to be wrong.

use fsq_calibrate::foresight::{
    CONTINUATIONS, Field, Foresight, ForesightError, GRID_PERCENT, Span, Stated, TAGS, confidence_prefix, parse,
    parse_plain_action, parse_world_model, render, render_plain_action, spans, world_model_end,
};
use proptest::prelude::*;

const TEXT: &str = "<imaginary>8 - 7 leads 1 9\n9 * 1 leads 9</imaginary><keyword>1, 9</keyword>\
    <analysis>one step short</analysis><confidence>65</confidence>\n<think>use the seven</think><action>8 - 7</action>";

fn example() -> Foresight {
    Foresight {
        imaginary: vec!["8 - 7 leads 1 9".into(), "9 * 1 leads 9".into()],
        keyword: vec!["1".into(), "9".into()],
        analysis: "one step short".into(),
        stated: Stated::from_percent(65).unwrap(),
        think: "use the seven".into(),
        action: "8 - 7".into(),
    }
}

fn refusal(text: &str) -> String {
    parse(text).unwrap_err().to_string()
}

#[test]
fn reads_and_writes_the_example() {
    assert_eq!(parse(TEXT).unwrap(), example());
    assert_eq!(render(&example()), TEXT);
    assert_eq!(example().check(), Ok(()));
}

#[test]
fn white_space_at_edges_is_not_content() {
    let spaced =
        TEXT.replace(">65<", "> 65\n<").replace(">8 - 7<", ">\n 8 - 7 <").replace("</confidence>\n", "</confidence>");
    assert_eq!(parse(&format!(" \n{spaced}\n")).unwrap(), example());
}

#[test]
fn fields_may_be_empty_and_hold_angle_brackets() {
    let text = "<imaginary>\n\n</imaginary><keyword> , </keyword><analysis>1 < 2 </b> <<</analysis>\
        <confidence>0</confidence><think></think><action></action>";
    let read = parse(text).unwrap();
    assert!(read.imaginary.is_empty() && read.keyword.is_empty() && read.action.is_empty());
    assert_eq!(read.analysis, "1 < 2 </b> <<");
    assert_eq!(read.stated.value(), 0.0);
    assert_eq!(parse(&render(&read)).unwrap(), read);
}

#[test]
fn spans_cover_the_text_and_name_the_digits() {
    let found = spans(TEXT).unwrap();
    assert!(TEXT[found.world_model.clone()].ends_with("<confidence>65</confidence>"));
    assert!(TEXT[found.policy.clone()].starts_with("\n<think>"));
    assert_eq!(&TEXT[found.confidence.clone()], "65");
    assert_eq!((found.world_model.start, found.policy.end), (0, TEXT.len()));
    assert_eq!(found.world_model.end, found.policy.start);
    assert_eq!(found.span_at(0), Some(Span::WorldModel));
    assert_eq!(found.span_at(found.policy.start), Some(Span::Policy));
    assert_eq!(found.span_at(TEXT.len()), None);
    let prefix = confidence_prefix(TEXT).unwrap();
    assert_eq!(prefix.len(), found.confidence.start);
    assert!(prefix.ends_with("<confidence>"));
    assert_eq!(world_model_end(TEXT), Some(found.policy.start));
    assert_eq!(confidence_prefix("<imaginary>"), None);
}

#[test]
fn continuations_and_tags_follow_the_grid_and_the_fields() {
    for (percent, continuation) in GRID_PERCENT.into_iter().zip(CONTINUATIONS) {
        assert_eq!(continuation, format!("{percent}{}", Field::Confidence.closing()));
        assert_eq!(Stated::from_percent(percent).unwrap().nearest_percent(), percent);
    }
    for (index, field) in Field::ALL.into_iter().enumerate() {
        assert_eq!(TAGS[2 * index], format!("<{}>", field.name()));
        assert_eq!(TAGS[2 * index + 1], format!("</{}>", field.name()));
        assert_eq!((field.opening(), field.closing()), (TAGS[2 * index], TAGS[2 * index + 1]));
    }
}

#[test]
fn every_fault_is_named() {
    let cut = |part: &str| refusal(&TEXT.replace(part, ""));
    let check = |found: String, expected: &str| assert_eq!(found, expected);
    check(refusal(""), "field `imaginary`: expected <imaginary>, found the end of the text");
    check(
        refusal(&format!("so: {TEXT}")),
        "field `imaginary`: expected <imaginary> at byte 0, found `so: <imaginary>8 - 7 leads 1 9\n9 * 1 lea..`",
    );
    check(
        refusal(&format!("{TEXT} ok")),
        &format!("field `action`: expected the end of the text at byte {}, found ` ok`", TEXT.len()),
    );
    check(
        refusal(&format!("{TEXT}<action>x</action>")),
        &format!("field `action`: expected the end of the text at byte {}, found a second `<action>`", TEXT.len()),
    );
    check(cut("<keyword>1, 9</keyword>"), "field `keyword`: expected <keyword> at byte 52, found `<analysis>`");
    check(cut("</keyword>"), "field `keyword`: expected text up to </keyword>, found the tag `<analysis>` at byte 65");
    check(cut("</action>"), "field `action`: expected </action>, found the end of the text");
    check(
        refusal(&TEXT.replace("one step", "<think>one</think> step")),
        "field `analysis`: expected text up to </analysis>, found the tag `<think>` at byte 85",
    );
    check(
        refusal(&TEXT.replace("<analysis>", "<imaginary></imaginary><analysis>")),
        "field `imaginary`: expected <analysis> at byte 75, found a second `<imaginary>`",
    );
    check(
        refusal(&TEXT.replace("</confidence>\n", "</confidence>\n\n")),
        "field `think`: expected <think> at byte 138, found `\n<think>use the seven</think><action>8 -..`",
    );
}

#[test]
fn only_whole_percents_of_the_grid_are_confidences() {
    for wrong in ["67", "065", "+5", "-5", "5.0", "65%", "105", "", "6 5", "0x5", "٥", "1000000000000000000000"] {
        let text = TEXT.replace(">65<", &format!(">{wrong}<"));
        assert_eq!(parse(&text), Err(ForesightError::Confidence { found: wrong.into() }));
        assert!(spans(&text).is_err());
        assert!(parse_world_model(&text).is_err());
    }
}

#[test]
fn the_world_model_span_is_read_alone() {
    let end = world_model_end(TEXT).unwrap();
    for rest in ["", "\n<think>", "garbage"] {
        let read = parse_world_model(&format!("{}{rest}", &TEXT[..end])).unwrap();
        assert_eq!((read.imaginary, read.stated), (example().imaginary, example().stated));
    }
    assert!(parse_world_model(&TEXT[..end - 1]).is_err());
}

#[test]
fn plain_actions() {
    assert_eq!(parse_plain_action(&render_plain_action("8 - 7")).unwrap(), "8 - 7");
    assert_eq!(parse_plain_action(" <action> 8 - 7 </action>\n").unwrap(), "8 - 7");
    for wrong in
        ["", "8 - 7", "<action>8 - 7", "<action>a</action><action>b</action>", "<action><think></action>", TEXT]
    {
        assert!(parse_plain_action(wrong).is_err(), "{wrong}");
    }
    assert!(parse("<action>8 - 7</action>").is_err());
}

#[test]
fn what_cannot_be_read_back_is_named() {
    let field = |change: fn(&mut Foresight)| {
        let mut it = example();
        change(&mut it);
        match it.check().unwrap_err() {
            ForesightError::Unwritable { field, .. } => field,
            other => panic!("{other}"),
        }
    };
    assert_eq!(field(|it| it.imaginary.push("a\nb".into())), Field::Imaginary);
    assert_eq!(field(|it| it.keyword.push("a,b".into())), Field::Keyword);
    assert_eq!(field(|it| it.analysis = " a".into()), Field::Analysis);
    assert_eq!(field(|it| it.stated = Stated::new(0.07).unwrap()), Field::Confidence);
    assert_eq!(field(|it| it.think = "</think>".into()), Field::Think);
    assert_eq!(field(|it| it.action = "a ".into()), Field::Action);
}

/// Text that often holds tags and pieces of them.
fn near_text() -> impl Strategy<Value = String> {
    let piece = prop_oneof![
        prop::sample::select(TAGS.to_vec()).prop_map(str::to_owned),
        prop::sample::select(vec!["<", ">", "</", "\n", " ", ",", "65", "100", "think>", "é"]).prop_map(str::to_owned),
        "\\PC{0,6}",
    ];
    prop::collection::vec(piece, 0..14).prop_map(|it| it.concat())
}

proptest! {
    #[test]
    fn rendering_is_undone_by_parsing(
        imaginary in prop::collection::vec("\\PC{0,20}", 0..4),
        keyword in prop::collection::vec("\\PC{0,8}", 0..4),
        analysis in near_text(),
        level in 0_usize..21,
        think in "(?s).{0,30}",
        action in "\\PC{0,12}",
    ) {
        let stated = Stated::from_percent(GRID_PERCENT[level]).unwrap();
        let it = Foresight { imaginary, keyword, analysis, stated, think, action };
        let read = parse(&render(&it));
        if it.check().is_ok() {
            prop_assert_eq!(read.clone(), Ok(it));
        }
        if let Ok(read) = read {
            prop_assert_eq!(read.check(), Ok(()));
            prop_assert_eq!(parse(&render(&read)), Ok(read));
        }
    }

    #[test]
    fn any_text_is_read_or_refused(text in near_text()) {
        let read = parse(&text);
        prop_assert_eq!(read.is_ok(), spans(&text).is_ok());
        if let Err(error) = read {
            prop_assert!(!error.to_string().is_empty());
        }
        let _ = (parse_world_model(&text), parse_plain_action(&text));
        if let Some(prefix) = confidence_prefix(&text) {
            prop_assert!(text.starts_with(prefix));
        }
    }
}
