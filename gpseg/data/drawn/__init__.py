"""Procedurally drawn faces with exact part masks: the data set that the package ships.

Every part is a polygon in the frame of the face, brought into the picture by a turn of the head
(yaw and pitch over a rounded face), a roll, a scale and a shift. Colours and class ids are painted
with the same polygons, supersampled, back to front, so the mask is exact, occlusion included: a
pixel takes the class that covers most of it.

Classes: `skin` includes neck and ears, `hair` includes eyebrows and beards, `eyes` are whites and
irises, `mouth` includes teeth and the open mouth. What covers a face without belonging to it
(glasses' frames and dark lenses, hats, hands, balls) is `background`, as clothes are; through clear
lenses the eyes are seen and labelled.
"""

from gpseg.data.drawn.canvas import DRAWN_CLASSES
from gpseg.data.drawn.data_set import write_drawn
from gpseg.data.drawn.face import draw_face

__all__ = ["DRAWN_CLASSES", "draw_face", "write_drawn"]
