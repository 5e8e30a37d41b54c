"""What a run did, for people: pictures with boxes, curves, one HTML page. No torch.

* :mod:`~grpo_stream.report.pictures`: true and predicted places drawn on an image,
* :mod:`~grpo_stream.report.charts`: curves and bars as SVG text,
* :mod:`~grpo_stream.report.stats`: how sure an accuracy is,
* :mod:`~grpo_stream.report.html`: the page that holds them.
"""
