use super::plot::number;
use super::*;

fn line(name: &str, points: Vec<(f64, f64)>) -> Series {
    Series { name: name.to_owned(), points }
}

#[test]
fn texts_are_no_markup_and_nothing_is_loaded() {
    let mut page = Page::new("a <b>", "c & d");
    page.warning("stopped \"early\"");
    page.section("x");
    page.paragraph("<script>alert(1)</script>");
    page.literal("\u{1b}[2J\tkey = 'v'\n");
    page.table(&[("name", Column::Words), ("n", Column::Numbers)], &[vec!["<i>".to_owned(), "3".to_owned()]]);
    page.plots(&[Plot {
        title: "<t>".to_owned(),
        along: "step",
        series: vec![line("<s>", vec![(1.0, 2.0)])],
    }]);
    let text = page.finish();
    for words in [
        "<title>a &lt;b&gt;</title>",
        "c &amp; d",
        "&lt;script&gt;",
        "\u{FFFD}[2J\tkey = &#39;v&#39;\n",
        "<td>&lt;i&gt;</td><td class=\"n\">3</td>",
        "<figcaption>&lt;t&gt;</figcaption>",
        "<title>&lt;s&gt;</title>",
    ] {
        assert!(text.contains(words), "{words:?} is not in {text}");
    }
    for outside in ["http:", "https:", "<script", "<img", "<link", "@import", "url(", "src="] {
        assert!(!text.contains(outside), "{outside:?} is in {text}");
    }
}

/// Every element that begins ends: what readers of XML would say of the drawing.
fn balanced(svg: &str) {
    let mut open = Vec::new();
    for part in svg.split('<').skip(1) {
        let tag = part.split('>').next().unwrap();
        let name = tag.trim_start_matches('/').split([' ', '/']).next().unwrap();
        match (tag.starts_with('/'), tag.ends_with('/')) {
            (true, _) => assert_eq!(open.pop(), Some(name), "{svg}"),
            (false, false) => open.push(name),
            (false, true) => {}
        }
    }
    assert!(open.is_empty(), "{open:?}");
}

#[test]
fn a_plot_has_its_points_where_they_are() {
    let plot = Plot {
        title: "loss".to_owned(),
        along: "step",
        series: vec![
            line("train", vec![(0.0, 4.0), (5.0, f64::NAN), (10.0, 2.0)]),
            line("validation", vec![(10.0, 3.0)]),
        ],
    };
    let svg = plot.svg();
    balanced(&svg);
    // The corners: the greatest is above, the least below; a gap begins a new line.
    assert!(svg.contains("d=\"M58.0 8.0M512.0 224.0\""), "{svg}");
    assert!(svg.contains("validation step 10: 3") && svg.contains("class=\"legend\""), "{svg}");
    // A line that is level, one without points, and numbers of any size.
    balanced(
        &Plot { title: String::new(), along: "step", series: vec![line("a", vec![(1.0, 5.0), (2.0, 5.0)])] }
            .svg(),
    );
    assert!(
        !Plot { title: String::new(), along: "step", series: vec![line("a", vec![(1.0, f64::NAN)])] }
            .has_points()
    );
    for size in [1e-30, 1e-3, 1.0, 12345.0, 1e12, 1e300] {
        let points = (0..3).map(|i| (f64::from(i), f64::from(i) * size)).collect();
        let svg = Plot { title: String::new(), along: "step", series: vec![line("a", points)] }.svg();
        balanced(&svg);
        assert!(!svg.contains("NaN") && !svg.contains("inf"), "{svg}");
    }
}

#[test]
fn a_long_line_keeps_what_sticks_out() {
    let mut points: Vec<(f64, f64)> = (0..100_000).map(|i| (f64::from(i), 1.0)).collect();
    points[77_777].1 = 50.0;
    points[5].1 = -50.0;
    let svg = Plot { title: String::new(), along: "step", series: vec![line("a", points)] }.svg();
    assert!(svg.len() < 20_000, "{}", svg.len());
    assert!(svg.contains(" 8.0L") && svg.contains(" 224.0L"), "{}", &svg[svg.len() - 3000..]);
}

#[test]
fn numbers_are_short() {
    for (value, want) in [
        (0.0, "0"),
        (0.25, "0.25"),
        (3.0, "3"),
        (123.456, "123.5"),
        (2480.0, "2480"),
        (24_800.0, "24.8k"),
        (1.5e6, "1.5M"),
        (1.5e-3, "0.0015"),
        (2e-4, "2.00e-4"),
        (-3e10, "-3.00e10"),
    ] {
        assert_eq!(number(value), want);
    }
}
