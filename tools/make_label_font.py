"""Makes the label font: a subset of Noto Sans CJK SC with the characters the labels need, as OpenType.

    apt-get install fonts-noto-cjk && pip install fonttools
    python tools/make_label_font.py

Run by hand when the wordings change; the product never imports it. The subset stays under the SIL Open Font
License: its text, with the copyright notice, lies beside the font.
"""

from __future__ import annotations

import argparse
from pathlib import Path

from fontTools import subset, ttLib

SOURCE = Path("/usr/share/fonts/opentype/noto/NotoSansCJK-Bold.ttc")
FACE = "Noto Sans CJK SC"
TARGET = Path(__file__).parents[1] / "src/danqing/service/assets/NotoSansCJKsc-Bold-labels.otf"

LATIN = "".join(map(chr, range(0x20, 0x7F))) + "©·–—…“”‘’×"
CHINESE = (
    "人工智能生成合成由内容图像模型片视频音文本辅助丹青作品画绘制创作来自疑似可能为经技术"
    "标识水印编号时间日期年月版权所有仅供参考预览测试的与和在以及或者，。：；！？（）《》、·"
    "人工智慧產生圖內容輔助視頻"
)


def face_of(path: Path, family: str) -> ttLib.TTFont:
    """The face of a font collection by its family name. Raises ValueError when there is none."""
    for font in ttLib.TTCollection(str(path)).fonts:
        if font["name"].getDebugName(1) == family:
            return font
    raise ValueError(f"{path} holds no {family}")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--source", type=Path, default=SOURCE)
    parser.add_argument("--target", type=Path, default=TARGET)
    arguments = parser.parse_args()
    font = face_of(arguments.source, FACE)
    options = subset.Options()
    options.layout_features = ["kern", "palt", "locl", "ccmp"]
    options.hinting = False  # drawn large and antialiased; hints would be half of the file
    options.name_IDs = ["*"]  # the licence and copyright stay in the font
    options.notdef_outline = True
    subsetter = subset.Subsetter(options)
    subsetter.populate(text=LATIN + CHINESE)
    subsetter.subset(font)
    font.save(arguments.target)
    print(f"{arguments.target.name}: {arguments.target.stat().st_size} bytes")


if __name__ == "__main__":
    main()
