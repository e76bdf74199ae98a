/*
 * Takes the regions that hnscc-qp found into the current image, as detections of class "AI: Tumor", and the
 * boxes of its review queue, as detections of class "AI: Review".
 *
 * Reads <project folder>/ai-detections/<entry id> <image name>.geojson, and the same in ai-review/ for the
 * boxes. Earlier detections of ours are replaced, unless a pathologist has touched them: one whose outline was edited, or that was locked, named,
 * coloured or given another class, stays as it is, and so does everything else in the image. What a
 * pathologist accepted, rejected or deleted does not come back. Running it twice changes nothing.
 *
 * How to run it: drop this file on QuPath's window, then Run (the open image) or Run > Run for project
 * (all images). Without the window: QuPath script --project=project.qpproj --save import_ai_detections.groovy
 * For QuPath 0.4 to 0.7. For research use only, not for diagnosis.
 */
import java.nio.ByteBuffer
import java.nio.ByteOrder
import java.security.MessageDigest
import org.locationtech.jts.geom.Polygon
import qupath.lib.io.PathIO
import static qupath.lib.scripting.QP.getCurrentHierarchy
import static qupath.lib.scripting.QP.getCurrentImageData
import static qupath.lib.scripting.QP.getProject
import static qupath.lib.scripting.QP.getProjectEntry

// Change this to true to get deleted detections back.
def bringBackDeleted = false

def entry = getProjectEntry()
if (entry == null) {
    println 'Open an image of a project first.'
    return
}
def image = entry.getImageName()

// The entry's id finds the file: an image may have been renamed in QuPath since.
def findFile = { name ->
    def folder = getProject().getPath().getParent().resolve(name).toFile()
    def files = (folder.listFiles() ?: []).findAll {
        it.getName().startsWith(entry.getID() + ' ') && it.getName().endsWith('.geojson')
    }
    return files.isEmpty() ? null : files.max { it.lastModified() }
}
def detectionsFile = findFile('ai-detections')
def boxesFile = findFile('ai-review')
if (detectionsFile == null && boxesFile == null) {
    println image + ': no AI detections beside ' + getProject().getPath() + '; run: hnscc-qp push STUDY'
    return
}

// An id of version 5 is one that hnscc-qp gave, and its end seals the outline that it was given to, as in
// hnscc_qp/qupath/ownership.py: a hash over the corners, on QuPath's grid of 0.01 px, in whatever order.
def onGrid = { double value -> (float) (Math.rint(value * 100d) / 100d + 0d) }

def ringsOf = { geometry ->
    def rings = []
    for (int i = 0; i < geometry.getNumGeometries(); i++) {
        def part = geometry.getGeometryN(i)
        if (part instanceof Polygon) {
            rings.add(part.getExteriorRing().getCoordinates())
            for (int k = 0; k < part.getNumInteriorRing(); k++) {
                rings.add(part.getInteriorRingN(k).getCoordinates())
            }
        }
    }
    return rings
}

// Without those on an upright or level side: before 0.6 QuPath drops them.
def addCorners = { coordinates, corners ->
    def points = []
    for (coordinate in coordinates) {
        def point = [onGrid(coordinate.x), onGrid(coordinate.y)]
        if (points.isEmpty() || points.last() != point) {
            points.add(point)
        }
    }
    int last = points.size() - 1  // the first once more
    for (int i = 0; i < last; i++) {
        def before = points[i == 0 ? last - 1 : i - 1]
        def here = points[i]
        def after = points[i + 1]
        def isStraight = { axis -> before[axis] == here[axis] && here[axis] == after[axis] }
        if (!isStraight(0) && !isStraight(1)) {
            corners.add(here)
        }
    }
}

def outlineOf = { roi ->
    def corners = new TreeSet({ a, b -> a[0] <=> b[0] ?: a[1] <=> b[1] } as Comparator)
    ringsOf(roi.getGeometry()).each { addCorners(it, corners) }
    def bytes = ByteBuffer.allocate(8 * corners.size()).order(ByteOrder.LITTLE_ENDIAN)
    corners.each { bytes.putFloat(it[0]).putFloat(it[1]) }
    return bytes.array().encodeHex().toString()
}

def space = UUID.fromString('82303122-b8b1-5bdb-81b9-afdeefe6a35b')
def isSealed = { id, roi ->
    if (id.version() != 5) {
        return false
    }
    def text = String.format('%012x', id.getMostSignificantBits() >>> 16) + '\n' + outlineOf(roi)
    def sha = MessageDigest.getInstance('SHA-1')
    def prefix = ByteBuffer.allocate(16)
    prefix.putLong(space.getMostSignificantBits()).putLong(space.getLeastSignificantBits())
    sha.update(prefix.array())
    def hash = ByteBuffer.wrap(sha.digest(text.getBytes('UTF-8')))
    long high = (hash.getLong() & 0x0fffL) | 0x5000L
    long low = (hash.getLong() & 0x3fffffffffffffffL) | Long.MIN_VALUE
    return (id.getMostSignificantBits() & 0xffffL) == high && id.getLeastSignificantBits() == low
}

// Before 0.6 QuPath keeps no metadata of detections, before 0.5 of nothing.
def hasForeignMetadata = { item ->
    item.metaClass.respondsTo(item, 'getMetadata') && item.getMetadata().keySet().any { !it.startsWith('AI ') }
}

def isAlike = { item, wantedClass ->
    item.isDetection() && item.getID().version() == 5 && item.getPathClass()?.toString() == wantedClass &&
        !item.isLocked() && item.getName() == null && item.getColor() == null && !item.hasChildObjects() &&
        !hasForeignMetadata(item)
}

def take = { file, wantedClass, prefix ->
    def incoming = PathIO.readObjects(file)  // read all of it before anything is changed
    def hierarchy = getCurrentHierarchy()
    def present = hierarchy.getAllObjects(false)
    def alike = present.findAll { isAlike(it, wantedClass) }
    def (earlier, reshaped) = alike.split { isSealed(it.getID(), it.getROI()) }
    def earlierIds = earlier.collect { it.getID() } as Set
    def presentIds = present.collect { it.getID() } as Set
    def keptIds = presentIds - earlierIds
    // Who accepts a detection by hand makes an annotation of the same outline, with an id of its own.
    def annotated = present.findAll { it.isAnnotation() }.collect { outlineOf(it.getROI()) } as Set

    // What was imported before, and not removed by this script, but is gone: a pathologist deleted it.
    def imageData = getCurrentImageData()
    def memory = 'hnscc-qp imported detections'
    def words = (imageData.getProperty(memory) ?: '').tokenize('\n')
    def importedIds = words.collect { UUID.fromString(it) } as Set
    def deletedIds = bringBackDeleted ? [] as Set : importedIds - presentIds

    def (wanted, left) = incoming.split {
        !keptIds.contains(it.getID()) && !deletedIds.contains(it.getID()) &&
            (annotated.isEmpty() || !annotated.contains(outlineOf(it.getROI())))
    }
    def deleted = left.count { deletedIds.contains(it.getID()) }
    def replaced = wanted.count { earlierIds.contains(it.getID()) }
    hierarchy.removeObjects(earlier, true)
    hierarchy.addObjects(wanted)
    def remembered = importedIds - earlierIds + wanted.collect { it.getID() }
    imageData.setProperty(memory, remembered.collect { it.toString() }.sort().join('\n'))

    println image + ': ' + prefix + (wanted.size() - replaced) + ' added, ' + replaced + ' replaced, ' +
        (earlier.size() - replaced) + ' removed, ' + (left.size() - deleted) +
        ' kept as the pathologist left them, ' + deleted + ' left out because they were deleted' +
        (reshaped.isEmpty() ? '' : '; ' + reshaped.size() + ' whose outline was edited stayed')
}

if (detectionsFile != null) {
    take(detectionsFile, 'AI: Tumor', '')
}
if (boxesFile != null) {
    take(boxesFile, 'AI: Review', 'boxes to review: ')
}
