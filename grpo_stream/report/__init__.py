"""What data and runs look like, for people: pictures with boxes, curves, one HTML page. No torch.

* ``marked_image``: boxes and points drawn on an image; which part is worth enlarging,
* ``charts``: curves and bars as SVG text,
* ``gallery``, ``contact_sheet``: samples of a data set as a page and as one picture,
* ``evaluation_page``: an evaluation as a page, from ``answer_cards``, ``evaluation_charts`` and
  ``evaluation_tables`` (its figures in words),
* ``training_page``, ``rollout_picture``: a run as a page; its answers while it learns,
* ``intervals``: how sure an accuracy is,
* ``html_page``, ``page_style``, ``drawn_text``: what all of them are laid out with.

docs/architecture.md has the map of all rooms.
"""
