"""What data and runs look like, for people: pictures with boxes, curves, one HTML page. No torch.

* :mod:`~grpo_stream.report.pictures`: true and predicted places drawn on an image,
* :mod:`~grpo_stream.report.charts`: curves and bars as SVG text,
* :mod:`~grpo_stream.report.zoom`: which part of an image is worth enlarging,
* :mod:`~grpo_stream.report.gallery`, :mod:`~grpo_stream.report.sheet`: samples of a data set as a
  page and as one picture,
* :mod:`~grpo_stream.report.evaluation`, :mod:`~grpo_stream.report.answer_card`,
  :mod:`~grpo_stream.report.picks`, :mod:`~grpo_stream.report.scatter`: an evaluation as a page,
  :mod:`~grpo_stream.report.figures_text`: its figures in words,
* :mod:`~grpo_stream.report.intervals`: how sure an accuracy is,
* :mod:`~grpo_stream.report.html`: the page that holds them.
"""
